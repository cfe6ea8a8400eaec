"""Everything that touches libnbd, nbdkit or qemu."""
