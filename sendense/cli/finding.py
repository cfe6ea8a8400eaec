"""What a user typed, found at the site or in the settings."""

from sendense.errors import InputError
from sendense.models import VmInfo
from sendense.settings import Settings, Site


def site_named(settings: Settings, name: str) -> tuple[str, Site]:
    """The site of that name; without a name the only one there is."""
    if not settings.sites:
        raise InputError("no site is set", "Describe it in the settings file under [sites.NAME] (docs/settings.md).")
    if not name and len(settings.sites) > 1:
        raise InputError("there are several sites", f"Name one with --site: {', '.join(settings.sites)}.")
    name = name or next(iter(settings.sites))
    return name, settings.site(name)


def find_vm(settings: Settings, text: str, site: str) -> VmInfo:
    """The VM that was named, as it is now."""
    from sendense.vsphere import inventory
    from sendense.vsphere.session import open_session

    with open_session(*site_named(settings, site)) as session:
        return inventory.find_vm(session, text)


def keys_of(text: str) -> list[int]:
    """Device keys, separated by commas."""
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError as exc:
        raise InputError(
            f"--disks {text}: not device keys", "Give numbers such as 2000,2001; 'sendense vms show VM' has them."
        ) from exc
