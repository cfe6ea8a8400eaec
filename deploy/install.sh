#!/bin/bash
#
# Installs Sendense on a machine of its own, as root on Debian 12 or Fedora, or brings an installation up to date.
#
#   deploy/install.sh hub|node      installs it from this folder; run again, it upgrades
#   deploy/install.sh --rollback    back to the release before the last upgrade
#   deploy/install.sh --uninstall   removes it; settings, state, restore points and the user stay
#   deploy/install.sh hub|node --image    the same as a step of a container image: no services, no build tools left
#
# docs/deploying.md says what goes where.
set -euo pipefail
umask 022 # whatever root has: the services read what is installed

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=/usr/bin/python3 # the distribution's: its libnbd is for this interpreter and no other
base=/opt/sendense
settings=/etc/sendense/sendense.toml
state=/var/lib/sendense
units=/etc/systemd/system
user=sendense
image_id=10809        # of the user in images: volumes keep it over releases
lock_seconds=900      # another run's packages and wheels
build_tools=(python3-venv python3-setuptools python3-wheel python3-pip python3-pip-whl python3-setuptools-whl)

# What corresponds to the Debian packages of deploy/setup. Fedora's Redis is Valkey, with Redis' command names in a package of its own.
fedora_packages=(
    python3 python3-setuptools python3-pip
    python3-libnbd
    nbdkit nbdkit-python-plugin
    qemu-img
    /usr/bin/redis-server
    util-linux e2fsprogs
    openssh-clients ca-certificates shadow-utils
)
fedora_node_packages=(nbdkit-vddk-plugin)
debian_packages=(openssh-client ca-certificates passwd)

say() { printf 'install: %s\n' "$*"; }

die() {
    printf 'install: %s\n' "$@" >&2
    exit 1
}

usage() { die "usage: deploy/install.sh hub|node [--image], or --rollback, or --uninstall"; }

distribution() {
    local ID='' ID_LIKE=''
    [[ ! -r /etc/os-release ]] || . /etc/os-release
    case " $ID $ID_LIKE " in
        *' debian '*) echo debian ;;
        *' fedora '*) echo fedora ;;
        *) die "this is ${ID:-no system that says what it is}: Sendense installs on Debian 12 and on Fedora." \
            "Elsewhere run it from images: docs/deploying.md." ;;
    esac
}

has_systemd() { [[ -d /run/systemd/system ]]; }

# Packages that start a Redis of their own must not: the hub has its own, and at a node the tunnel needs the port.
redis_units=(redis-server.service redis.service valkey.service)
masked=()

mask_redis() {
    has_systemd || return 0 # then nothing starts it now, and unmask_redis keeps it from the next boot
    local unit
    for unit in "${redis_units[@]}"; do
        systemctl cat "$unit" >/dev/null 2>&1 && continue
        systemctl mask --quiet "$unit" && masked+=("$unit")
    done
    trap unmask_redis EXIT
}

unmask_redis() {
    trap - EXIT
    if has_systemd; then
        ((${#masked[@]})) || return 0
        systemctl unmask --quiet "${masked[@]}"
        systemctl disable --quiet "${masked[@]}" 2>/dev/null || true
        masked=()
    elif command -v systemctl >/dev/null; then
        systemctl disable --quiet "${redis_units[@]}" 2>/dev/null || true
    fi
}

install_debian_packages() {
    local wanted installed missing=()
    mapfile -t wanted < <("$root/deploy/setup" packages)
    wanted+=("${debian_packages[@]}")
    installed=$(dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null || true)
    local package
    for package in "${wanted[@]}"; do
        grep -qxF "installed $package" <<<"$installed" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing Debian packages: ${missing[*]}"
    apt-get --quiet update || say "apt-get update failed; going on with the package lists there are"
    mask_redis
    DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install "${missing[@]}" ||
        die "apt-get could not install these packages: its messages above say why."
    unmask_redis
}

install_fedora_packages() {
    local wanted=("${fedora_packages[@]}") missing=() package
    [[ $kind != node ]] || wanted+=("${fedora_node_packages[@]}")
    for package in "${wanted[@]}"; do
        rpm --quiet --query --whatprovides "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing Fedora packages: ${missing[*]}"
    mask_redis
    dnf --assumeyes --setopt=install_weak_deps=False install "${missing[@]}" ||
        die "dnf could not install these packages: its messages above say why."
    unmask_redis
}

make_user() {
    getent passwd "$user" >/dev/null && return 0
    local id=()
    [[ ! $image ]] || id=(--uid "$image_id")
    useradd --system --user-group "${id[@]}" --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$user"
    say "made the user $user"
}

# Names a release: of another source, lock, unit or Python it is another one. So what runs is never changed under it, and what has
# to be started again shows by itself.
release_name() {
    if [[ $image ]]; then
        echo image # a lab's settings name a file in it, and outlive the image
        return
    fi
    {
        "$python" --version
        cd "$root"
        find sendense workers deploy/systemd -type f ! -name '*.pyc' -print0 | sort -z |
            xargs -0 cat -- pyproject.toml deploy/requirements.txt deploy/redis.conf
    } | sha256sum | cut -c1-12
}

make_release() {
    local folder=$1
    [[ ! -e $folder/.finished ]] || return 0
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is $("$python" --version): Sendense needs Python 3.11 or later."
    say "making $folder"
    rm -rf "$folder"
    install -d -m 755 "$base" "$base/releases"
    unset PYTHONHOME PYTHONPATH
    "$python" -m venv --system-site-packages "$folder"
    local source pip=("$folder/bin/python" -m pip --disable-pip-version-check --quiet ${image:+--no-cache-dir} install)
    "${pip[@]}" --require-hashes --only-binary :all: -r "$root/deploy/requirements.txt" ||
        die "pip could not install what deploy/requirements.txt names: its messages above say why."
    source=$(mktemp -d) # pip builds in the folder that it is given
    cp -R "$root/sendense" "$root/workers" "$root/pyproject.toml" "$root/README.md" "$source"
    "${pip[@]}" --no-deps --no-build-isolation "$source" || die "pip could not install Sendense itself."
    rm -rf "$source"
    install -D -m 644 "$root/deploy/redis.conf" "$folder/share/sendense/redis.conf"
    "$folder/bin/python" -c 'import nbd, sendense.cli.main' || die "Sendense does not start: the lines above say why."
    [[ ! $image ]] || "$folder/bin/python" -m pip --quiet uninstall --yes pip setuptools
    touch "$folder/.finished"
}

# One rename: there is no instant without a release, and none with half of one.
point_to() {
    ln -sfn "$2" "$base/$1.new"
    mv -T "$base/$1.new" "$base/$1"
}

use_release() {
    local name=$1 before
    before=$(readlink "$base/current" 2>/dev/null || true)
    [[ $before != "releases/$name" ]] || return 0
    [[ ! $before ]] || point_to previous "$before"
    point_to current "releases/$name"
}

# What something runs stays: it is known by its interpreter's path, and by the libraries that it has loaded.
remove_old_releases() {
    local each kept
    kept=$({ cat /proc/[0-9]*/{cmdline,maps} 2>/dev/null || true; } | { grep -aoE "$base/releases/[0-9a-z]+" || true; } | sort -u)
    for each in "$base"/releases/*; do
        case releases/${each##*/} in
            "$(readlink "$base/current")" | "$(readlink "$base/previous" 2>/dev/null)") continue ;;
        esac
        grep -qxF "$each" <<<"$kept" && continue
        rm -f "$each/.finished" # first: half of one is none
        rm -rf "$each"
    done
}

# By what runs and not by what this run did: an earlier one may have been interrupted, or was for the other kind. Also what still
# waits for its hub; what somebody stops meanwhile stays stopped.
restart_outdated() {
    local found unit pid program now
    has_systemd || return 0
    now=$base/$(readlink "$base/current")
    found=$(systemctl list-units --plain --no-legend --full sendense-hub.service 'sendense-node@*.service')
    while read -r unit _; do
        [[ $unit ]] || continue
        pid=$(systemctl show --value --property MainPID "$unit")
        { read -rd '' program <"/proc/$pid/cmdline"; } 2>/dev/null || continue
        if [[ $program == /* && $program != "$now"/* ]]; then # its interpreter; not so while it is only being started
            # Jobs go on from what is stored: what is under way has its time to end, as the units say.
            say "restarting ${unit%.service}; its jobs go on by themselves"
            systemctl try-restart --no-block "$unit"
        fi
    done <<<"$found"
}

install_file() {
    cmp --quiet "$3" "$2" 2>/dev/null || install -m "$1" "$2" "$3"
}

# Where a machine is both, both kinds' units: they have the release in common.
install_units() {
    install -d -m 755 /etc/sendense
    if [[ $kind == hub || -e $units/sendense-hub.service ]]; then
        install_file 644 "$root/deploy/systemd/sendense-hub.service" "$units/sendense-hub.service"
    fi
    if [[ $kind == node || -e $units/sendense-node@.service ]]; then
        install_file 755 "$root/deploy/tunnel/sendense-tunnel" /usr/local/bin/sendense-tunnel
        install_file 644 "$root/deploy/tunnel/sendense-tunnel.service" "$units/sendense-tunnel.service"
        install_file 644 "$root/deploy/systemd/sendense-node@.service" "$units/sendense-node@.service"
        [[ -e /etc/sendense/tunnel.env ]] || install -m 644 "$root/deploy/tunnel/tunnel.env" /etc/sendense/tunnel.env
    fi
    ! has_systemd || systemctl daemon-reload
}

# What the settings have of what a service needs: a line "hub REPOSITORY", and a line "site NAME" for each site of a node.
configured() {
    "$base/current/bin/python" - "$settings" <<'PYTHON'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    found = tomllib.load(file)
if "repository" in found:
    print("hub", found["repository"])
if "redis" in found:
    print(*(f"site {name}" for name in found.get("sites", {})), sep="\n")
PYTHON
}

# Without its file system mounted, a repository's folder would be an empty one, and the next backup a new repository.
require_mount() {
    local drop_in=$units/sendense-hub.service.d
    install -d -m 755 "$drop_in"
    printf '[Unit]\nRequiresMountsFor="%s"\n' "$1" >"$drop_in/repository.conf"
}

enable_units() {
    local found word rest unit
    found=$(configured) || die "$settings cannot be read: correct it, then run this again."
    while read -r word rest; do
        case $kind-$word in
            hub-hub)
                require_mount "$rest"
                wanted+=(sendense-hub)
                ;;
            node-site) wanted+=("sendense-node@$rest") ;;
        esac
    done <<<"$found"
    ((${#wanted[@]})) || return 0 # its settings are to be filled in first
    # A hub that is reached over TLS needs no tunnel.
    [[ $kind == hub ]] || grep -qs '^redis *= *"rediss:' "$settings" || wanted=(sendense-tunnel "${wanted[@]}")
    systemctl enable --quiet "${wanted[@]}"
    has_systemd || return 0
    systemctl daemon-reload
    for unit in "${wanted[@]}"; do
        case $(systemctl is-active "$unit" || true) in
            active | reloading | activating) ;;
            *)
                say "starting $unit"
                systemctl start --no-block "$unit"
                ;;
        esac
    done
}

install_machine() {
    install -d -m 700 -o "$user" -g "$user" "$state"
    if [[ ! -e $settings ]]; then
        install -m 640 -g "$user" "$root/deploy/$kind.toml" "$settings"
        say "wrote $settings: an example to fill in"
    fi
    ln -sfn "$base/current/bin/sendense" /usr/local/bin/sendense
    enable_units
    restart_outdated
    ! command -v restorecon >/dev/null || restorecon -R "$base" /usr/local/bin/sendense /etc/sendense
    say "installed: $("$base/current/bin/sendense" --version), as a $kind"
    if ((${#wanted[@]})); then
        printf '\nNext, does all of it work?\n  sudo -u %s sendense doctor --%s\n' "$user" "$kind"
    else
        printf '\nNext:\n  1. Fill in %s (docs/settings.md).\n  2. %s/deploy/install.sh %s      # starts it\n  3. sudo -u %s sendense doctor --%s\n' \
            "$settings" "$root" "$kind" "$user" "$kind"
    fi
}

install_image() {
    ln -sfn "$base/current/bin/sendense" /usr/local/bin/sendense
    install -m 755 "$root/deploy/images/entry" /usr/local/bin/sendense-entry
    install -m 755 "$root/deploy/images/healthy" /usr/local/bin/sendense-healthy
    # A new volume takes over whose its mount point is.
    install -d -m 755 /etc/sendense /srv
    ln -sfn hub/sendense.toml "$settings" # in a folder that may be mounted, and may have none
    install -d -m 700 -o "$user" -g "$user" "$state" /srv/backup /etc/sendense/keys /etc/sendense/hub \
        /keys /keys/authority /keys/redis /keys/hub /keys/flower /keys/node /var/lib/redis /srv/copies
    case $system in
        debian)
            local installed package gone=()
            for package in "${build_tools[@]}"; do
                ! dpkg-query --show "$package" >/dev/null 2>&1 || gone+=("$package")
            done
            ((${#gone[@]} == 0)) || DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes --auto-remove purge "${gone[@]}"
            apt-get clean
            rm -rf /var/lib/apt/lists/*
            ;;
        fedora)
            dnf --assumeyes remove python3-setuptools python3-pip
            dnf clean all
            ;;
    esac
    case $root in /usr/src/*) rm -rf "$root" ;; esac
}

rollback() {
    local before after
    before=$(readlink "$base/previous" 2>/dev/null) || die "there is no release before this one in $base/releases."
    after=$(readlink "$base/current")
    point_to current "$before"
    say "back to $("$base/current/bin/sendense" --version), in $base/$before"
    restart_outdated
    point_to previous "$after" # last: were this interrupted, the next --rollback would come to the same
}

uninstall() {
    local unit
    if has_systemd; then
        systemctl stop 'sendense-node@*.service' sendense-hub.service sendense-tunnel.service 2>/dev/null || true
    fi
    for unit in "$units"/multi-user.target.wants/sendense-*.service; do
        [[ ! -L $unit ]] || rm "$unit"
    done
    rm -rf "$units/sendense-hub.service.d"
    rm -f "$units"/sendense-{hub,node@,tunnel}.service /usr/local/bin/sendense-tunnel /usr/local/bin/sendense
    rm -rf "$base"
    ! has_systemd || systemctl daemon-reload
    say "removed. Kept: /etc/sendense, $state, the restore points, the user $user, and what the distribution packages."
}

kind=${1-} image='' wanted=()
case $kind in
    hub | node)
        case ${2-} in '') ;; --image) image=1 ;; *) usage ;; esac
        ;;
    --rollback | --uninstall) (($# == 1)) || usage ;;
    *) usage ;;
esac
((EUID == 0)) || die "run this as root: it makes a user, services, and folders in /opt, /etc and /var."

install -d /run/lock
exec 9>/run/lock/sendense-install
flock --wait "$lock_seconds" 9 || die "another run has been at it for $((lock_seconds / 60)) minutes: look what it waits for."

case $kind in
    --rollback) rollback ;;
    --uninstall) uninstall ;;
    *)
        system=$(distribution)
        "install_${system}_packages" 9<&- # what a package starts must not keep the lock
        make_user
        name=$(release_name)
        make_release "$base/releases/$name"
        [[ $image ]] || install_units # before there is anything that could be started with the new release and an old unit
        use_release "$name"
        remove_old_releases
        if [[ $image ]]; then install_image; else install_machine; fi
        ;;
esac
