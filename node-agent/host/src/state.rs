//! Where the agent keeps what must outlive it and is not in the kernel.

use std::path::{Path, PathBuf};

/// The state directory, unless the operator names another.
pub const STATE_DIR: &str = "/var/lib/fairlead";

/// The leases of pod addresses, see [`crate::Ipam`].
#[must_use]
pub fn lease_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("leases")
}

/// The kernel parameters that were changed, see [`crate::SysctlRecord`].
#[must_use]
pub fn sysctl_record(state_dir: &Path) -> PathBuf {
    state_dir.join("sysctls")
}

/// The ports of the node that pods have, see [`crate::HostPorts`].
#[must_use]
pub fn host_port_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("host-ports")
}
