"""Speaking to a VMware site: vCenter through pyVmomi, and the argv of the nbdkit that reads its disks."""
