//! `/run/flannel/subnet.env`: what flannel's CNI plugin and other tools read of this node (flannel
//! `pkg/subnet/subnet.go`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;

/// What the file says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubnetEnv {
    /// At most one a family.
    pub networks: Vec<IpNetwork>,
    pub subnets: Vec<IpNetwork>,
    /// In bytes.
    pub mtu: u32,
    /// Whether the node masquerades what leaves the cluster; then CNI plugins must not.
    pub masquerades: bool,
}

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {path}")]
pub struct SubnetEnvError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl SubnetEnv {
    /// The text, in flannel's order. A subnet is spelt with its first usable address.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (v4, infix) in [(true, ""), (false, "IPV6_")] {
            let of_family = |networks: &[IpNetwork]| {
                let mut found = networks.iter().copied();
                found.find(|network| network.is_ipv4() == v4)
            };
            if let (Some(network), Some(subnet)) =
                (of_family(&self.networks), of_family(&self.subnets))
            {
                let first = first_usable(subnet);
                text += &format!("FLANNEL_{infix}NETWORK={network}\n");
                text += &format!("FLANNEL_{infix}SUBNET={first}/{}\n", subnet.prefix());
            }
        }
        text + &format!(
            "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.mtu, self.masquerades
        )
    }

    /// Writes the file so that a reader sees it whole, unless it is right already.
    ///
    /// # Errors
    ///
    /// [`SubnetEnvError`] names the file.
    pub fn write(&self, path: &Path) -> Result<(), SubnetEnvError> {
        let text = self.text();
        if fs::read_to_string(path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        let write = || {
            let directory = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(directory)?;
            let pending = directory.join(".subnet.env.pending");
            let mut file = File::create(&pending)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            fs::rename(&pending, path)
        };
        write().map_err(|source| SubnetEnvError {
            path: path.to_owned(),
            source,
        })
    }

    /// The subnets that a file names, those of flannel included; none if there is no file or it cannot be read.
    #[must_use]
    pub fn subnets_of(path: &Path) -> Vec<IpNetwork> {
        Self::subnets_in(&fs::read_to_string(path).unwrap_or_default())
    }

    /// As [`SubnetEnv::subnets_of`], of a file's text.
    #[must_use]
    pub fn subnets_in(text: &str) -> Vec<IpNetwork> {
        text.lines()
            .filter_map(|line| {
                let (key, value) = line.split_once('=')?;
                if !matches!(key.trim(), "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET") {
                    return None;
                }
                let written: IpNetwork = value.trim().parse().ok()?;
                IpNetwork::new(written.network(), written.prefix()).ok()
            })
            .collect()
    }
}

fn first_usable(subnet: IpNetwork) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) | 1).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base) | 1).into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env() -> SubnetEnv {
        SubnetEnv {
            networks: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:10:244::/48".parse().unwrap(),
            ],
            subnets: vec![
                "10.244.1.0/24".parse().unwrap(),
                "fd00:10:244:1::/64".parse().unwrap(),
            ],
            mtu: 1450,
            masquerades: true,
        }
    }

    #[test]
    fn the_file_is_byte_for_byte_what_flannel_writes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel/subnet.env");
        env().write(&path).unwrap();
        let expected = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
            FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n\
            FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(SubnetEnv::subnets_of(&path), env().subnets);
        assert_eq!(SubnetEnv::subnets_of(directory.path()), []);
    }

    #[test]
    fn one_family_leaves_the_other_out() {
        let env = SubnetEnv {
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            ..env()
        };
        assert!(!env.text().contains("IPV6"), "{}", env.text());
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "(FLANNEL_SUBNET=.{0,20}\n|.{0,40}\n){0,5}") {
            let _ = SubnetEnv::subnets_in(&text);
        }
    }
}
