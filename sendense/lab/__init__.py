"""A simulated VMware site: a vCenter that the real pyVmomi talks to, and disks that nbdkit serves."""
