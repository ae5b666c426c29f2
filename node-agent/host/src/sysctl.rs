//! The kernel parameters that the node needs, and why.
//!
//! | parameter | value | reason |
//! |---|---|---|
//! | `net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding` | 1 | packets of pods that the dataplane leaves to the kernel are routed |
//! | `net.ipv6.conf.IF.accept_ra` | 1 becomes 2 | forwarding would make the node forget the routes that its routers announce |
//! | `net.ipv4.conf.all.rp_filter` | 1 becomes 0, and 1 on each interface | strict checks on all would override the 0 of pod links |
//! | `net.ipv4.ip_local_reserved_ports` | the masquerade range is added | the kernel must not give these ports to sockets |
//!
//! See `Documentation/networking/ip-sysctl.rst`. `/proc/sys/net` shows the namespace of the thread that opens it.

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

const IPV4_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6_FORWARD: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A kernel parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {value} to {path}")]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "sysctl {key:?} is not allowed: name one of the pod's own, such as net.ipv4.ip_unprivileged_port_start"
    )]
    NotOfTheNamespace { key: String },
    #[error("{path} holds {value:?}, which is no list of ports")]
    Ports { path: PathBuf, value: String },
}

/// The two directories of per-interface parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn directory(self) -> &'static Path {
        Path::new(match self {
            Self::V4 => "/proc/sys/net/ipv4/conf",
            Self::V6 => "/proc/sys/net/ipv6/conf",
        })
    }
}

/// Sets what the node needs in the namespace of the calling thread; values that are right are not written.
/// `nat_ports`, in host order, are the ports that the dataplane gives to masqueraded connections.
///
/// # Errors
///
/// [`SysctlError`], which names the file.
pub fn apply_host_sysctls(nat_ports: &RangeInclusive<u16>) -> Result<(), SysctlError> {
    if Family::V6.directory().exists() {
        for interface in interfaces(Family::V6)? {
            let path = Family::V6.directory().join(interface).join("accept_ra");
            if read(&path)? == "1" {
                write(&path, "2")?;
            }
        }
        ensure(Path::new(IPV6_FORWARD), "1")?;
    }
    ensure(Path::new(IPV4_FORWARD), "1")?;
    loosen_rp_filter()?;
    let path = Path::new(RESERVED_PORTS);
    let present = read(path)?;
    let wanted = with_reserved(&present, nat_ports).ok_or_else(|| SysctlError::Ports {
        path: path.to_owned(),
        value: present.clone(),
    })?;
    if wanted == present {
        Ok(())
    } else {
        write(path, &wanted)
    }
}

/// Sets one parameter of one interface (or of `all`, or of `default`).
pub(crate) fn set_interface(
    family: Family,
    interface: &str,
    key: &str,
    value: &str,
) -> Result<(), SysctlError> {
    ensure(&family.directory().join(interface).join(key), value)
}

/// Sets a parameter below `net`, of the namespace of the calling thread. The key is spelt with dots or with slashes,
/// as sysctl(8) takes it: with slashes where an interface's name has dots.
pub(crate) fn set_net(key: &str, value: &str) -> Result<(), SysctlError> {
    ensure(&net_path(key)?, value)
}

fn net_path(key: &str) -> Result<PathBuf, SysctlError> {
    let separator = if key.contains('/') { '/' } else { '.' };
    let parts: Vec<&str> = key.split(separator).collect();
    let is_part = |part: &&str| !matches!(*part, "" | "." | "..");
    if parts.len() < 2 || parts[0] != "net" || !parts.iter().all(is_part) {
        return Err(SysctlError::NotOfTheNamespace {
            key: key.to_owned(),
        });
    }
    Ok(Path::new("/proc/sys").join(parts.join("/")))
}

/// No link-local address, no router solicitation, no duplicate address detection: for interfaces whose traffic the
/// dataplane's programs handle. Does nothing where the kernel has no IPv6.
pub(crate) fn quiet_ipv6(interface: &str) -> Result<(), SysctlError> {
    if !Family::V6.directory().exists() {
        return Ok(());
    }
    // 1 is IN6_ADDR_GEN_MODE_NONE.
    for (key, value) in [
        ("disable_ipv6", "0"),
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
    ] {
        set_interface(Family::V6, interface, key, value)?;
    }
    Ok(())
}

/// The kernel checks by the stricter of `all` and the interface, so a strict `all` moves to the interfaces, where it
/// keeps its meaning for all but ours.
fn loosen_rp_filter() -> Result<(), SysctlError> {
    let directory = Family::V4.directory();
    let all = directory.join("all/rp_filter");
    if read(&all)? != "1" {
        return Ok(());
    }
    for interface in interfaces(Family::V4)? {
        let path = directory.join(interface).join("rp_filter");
        if path != all && read(&path)? == "0" {
            write(&path, "1")?;
        }
    }
    write(&all, "0")
}

fn interfaces(family: Family) -> Result<Vec<PathBuf>, SysctlError> {
    let directory = family.directory();
    let failed = |source| SysctlError::Read {
        path: directory.to_owned(),
        source,
    };
    fs::read_dir(directory)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.file_name().into()).map_err(failed))
        .collect()
}

/// The list of reserved ports with `range` in it; `None` if the list cannot be read. The kernel's list is sorted and
/// merged; so is the answer.
fn with_reserved(list: &str, range: &RangeInclusive<u16>) -> Option<String> {
    let mut ranges = vec![(*range.start(), *range.end())];
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        ranges.push((first.parse().ok()?, last.parse().ok()?));
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let text = |(first, last): (u16, u16)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    Some(merged.into_iter().map(text).collect::<Vec<_>>().join(","))
}

fn ensure(path: &Path, value: &str) -> Result<(), SysctlError> {
    if read(path)? == value {
        Ok(())
    } else {
        write(path, value)
    }
}

fn read(path: &Path) -> Result<String, SysctlError> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| SysctlError::Read {
            path: path.to_owned(),
            source,
        })
}

fn write(path: &Path, value: &str) -> Result<(), SysctlError> {
    fs::write(path, value).map_err(|source| SysctlError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masquerade_range_joins_the_ports_that_are_reserved_already() {
        for (present, expected) in [
            ("", "61000-63999"),
            ("8080", "8080,61000-63999"),
            ("8080,9148-9150", "8080,9148-9150,61000-63999"),
            ("61000-63999", "61000-63999"),
            ("60000-60999", "60000-63999"),
            ("62000,65000", "61000-63999,65000"),
            ("1-65535", "1-65535"),
        ] {
            assert_eq!(
                with_reserved(present, &(61000..=63999)).as_deref(),
                Some(expected),
                "{present}"
            );
        }
    }

    #[test]
    fn a_pod_may_set_parameters_of_its_own_network_only() {
        let path = |key: &str| net_path(key).map(|path| path.display().to_string()).ok();
        let expected = Some("/proc/sys/net/ipv4/conf/eth0.7/rp_filter".to_owned());
        assert_eq!(path("net/ipv4/conf/eth0.7/rp_filter"), expected);
        assert_eq!(
            path("net.core.somaxconn").as_deref(),
            Some("/proc/sys/net/core/somaxconn")
        );
        for bad in [
            "",
            "net",
            "kernel.panic",
            "net/../kernel/panic",
            "net..x",
            "/net/x",
            "net/",
            "net.",
        ] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_overwritten() {
        assert_eq!(with_reserved("8080,many", &(61000..=63999)), None);
        assert_eq!(with_reserved("70000", &(61000..=63999)), None);
    }
}
