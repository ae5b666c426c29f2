//! Flannel's keys, `10.5.52.0-24`, or `10.5.52.0-24&2001:cafe:42:1::-64` for both families, and what they hold.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::Lease;

/// Why a key of etcd is no lease.
#[derive(Debug, thiserror::Error)]
pub enum NoLease {
    #[error("its key names no subnet")]
    Key,
    #[error("its value is not a lease's: {0}")]
    Value(#[from] serde_json::Error),
}

/// The lease that the key with the last part `holder` is, created at this revision.
///
/// # Errors
///
/// When the key names no subnet, or the value cannot be read.
pub fn etcd_lease(holder: &str, value: &[u8], created: i64) -> Result<Lease, NoLease> {
    Ok(Lease {
        holder: holder.to_owned(),
        subnets: subnets(holder).ok_or(NoLease::Key)?,
        attributes: serde_json::from_slice(value)?,
        since: created,
    })
}

/// The last part of the key of a lease; `None` without an IPv4 subnet, which flannel's keys begin with.
pub(crate) fn name(subnets: &[IpNetwork]) -> Option<String> {
    let v4 = subnets.iter().find(|subnet| subnet.is_ipv4())?;
    let mut name = format!("{}-{}", v4.network(), v4.prefix());
    if let Some(v6) = subnets.iter().find(|subnet| subnet.is_ipv6()) {
        name += &format!("&{}-{}", v6.network(), v6.prefix());
    }
    Some(name)
}

/// The subnets that the last part of a key names; `None` if it is no lease.
pub(crate) fn subnets(name: &str) -> Option<Vec<IpNetwork>> {
    let (v4, v6) = match name.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (name, None),
    };
    let mut found = vec![subnet::<Ipv4Addr>(v4)?];
    if let Some(v6) = v6 {
        found.push(subnet::<Ipv6Addr>(v6)?);
    }
    Some(found)
}

fn subnet<A: std::str::FromStr + Into<std::net::IpAddr>>(text: &str) -> Option<IpNetwork> {
    let (base, length) = text.rsplit_once('-')?;
    if !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let written = IpNetwork::new(base.parse::<A>().ok()?.into(), length.parse().ok()?).ok()?;
    (written.ip() == written.network()).then_some(written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flannels_keys_are_read_and_written() {
        for text in ["10.5.52.0-24", "10.5.52.0-24&2001:cafe:42:1::-64"] {
            assert_eq!(name(&subnets(text).unwrap()).unwrap(), text);
        }
        for bad in [
            "",
            "config",
            "10.5.52.0",
            "10.5.52.0/24",
            "10.5.52.0-33",
            "10.5.52.1-24",
            "10.5.52.0-+8",
            "10.5.52.0-24&",
            "10.5.52.0-24&10.5.53.0-24",
            "2001:cafe:42:1::-64",
        ] {
            assert_eq!(subnets(bad), None, "{bad}");
        }
        assert_eq!(name(&["fd00::/64".parse().unwrap()]), None);
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic_and_what_is_read_is_written(text in "[0-9.:a-f&-]{0,40}|.{0,20}") {
            if let Some(found) = subnets(&text) {
                prop_assert_eq!(subnets(&name(&found).unwrap()), Some(found));
            }
        }
    }
}
