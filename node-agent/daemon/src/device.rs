//! `--xdp`: whether the uplink's device itself sends on what only passes through this node, and how.

use std::path::Path;

use clap::ValueEnum;
use node_agent_host::Uplink;
use node_agent_maps::{Dataplane, DeviceMode};
use tracing::{info, warn};

/// What the operator wants of the device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Xdp {
    /// Native where that is a gain, else off.
    Auto,
    /// In the device's driver.
    Native,
    /// In the kernel's stack, for any device whose packets come with complete checksums.
    Generic,
    Off,
}

/// Attaches as wanted; the answer is what came of it. A device that cannot costs speed and nothing else: its packets go
/// through `from_network`, as without.
pub fn choose(wanted: Xdp, dataplane: &Dataplane, uplink: &Uplink) -> Option<DeviceMode> {
    let mode = match wanted {
        Xdp::Off => None,
        Xdp::Generic => Some(DeviceMode::Generic),
        Xdp::Native => Some(DeviceMode::Native),
        Xdp::Auto => match loss(driver(&uplink.name, uplink.mac.0).as_deref()) {
            Some(reason) => {
                info!(uplink = uplink.name, reason, "NodePorts go without XDP");
                None
            }
            None => Some(DeviceMode::Native),
        },
    };
    let Some(mode) = mode else {
        detach(dataplane);
        return None;
    };
    match dataplane.attach_device(uplink.ifindex, mode) {
        Ok(attached) => {
            info!(
                uplink = uplink.name,
                ?mode,
                ?attached,
                "NodePorts go by XDP"
            );
            Some(mode)
        }
        Err(error) => {
            warn!(
                uplink = uplink.name,
                ?mode,
                %error,
                "the uplink takes no XDP program in this mode: NodePorts go without it; --xdp=off says so, --xdp=generic \
                 asks for less"
            );
            detach(dataplane);
            None
        }
    }
}

fn detach(dataplane: &Dataplane) {
    if let Err(error) = dataplane.detach_device() {
        warn!(%error, "cannot take the XDP program from the uplink");
    }
}

/// Why native XDP would cost this driver's device more than it saves; `None` if it would not.
fn loss(driver: Option<&str>) -> Option<&'static str> {
    match driver {
        None => Some("a virtual device: XDP would turn segmentation offload off at its other end"),
        Some("virtio_net") => Some("virtio_net: XDP would turn its receive offloads off"),
        Some(_) => None,
    }
}

/// The name of a device's driver; `None` for one without hardware. A sysfs shows the devices of the network namespace
/// that it was mounted in: one of the same name but another address is not ours.
fn driver(interface: &str, mac: [u8; 6]) -> Option<String> {
    let folder = Path::new("/sys/class/net").join(interface);
    let address = std::fs::read_to_string(folder.join("address")).ok()?;
    if address.trim() != mac.map(|byte| format!("{byte:02x}")).join(":") {
        return None;
    }
    let target = std::fs::read_link(folder.join("device/driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_that_gains_gets_xdp_by_itself() {
        assert!(loss(None).is_some());
        assert!(loss(Some("virtio_net")).is_some());
        assert_eq!(loss(Some("mlx5_core")), None);
        assert_eq!(driver("lo", [0; 6]), None);
    }
}
