//! Attaching, by links that are pinned: they outlive the agent, and a new agent adopts them or replaces their program
//! in one step.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use crate::{
    Dataplane, Error, Program,
    load::{file_error, links_dir},
    sys::{self, Access, LinkKind},
};

/// What attaching did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attached {
    /// There was no live link: there is one now.
    Created,
    /// The link's program was another: it was replaced, with no packet between the two.
    Replaced,
    /// The link and its program were as they should be: nothing was changed.
    Adopted,
}

/// A pinned link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// The pin's name.
    pub name: String,
    pub target: LinkTarget,
    pub program_id: u32,
}

/// Where a link is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkTarget {
    Interface {
        ifindex: u32,
    },
    Cgroup {
        id: u64,
    },
    /// The interface or cgroup no longer exists.
    Gone,
}

/// How a device runs an XDP program. Its pin's name says it: the kernel's link does not tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceMode {
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the stack, on a socket buffer: for any device.
    Generic,
}

impl DeviceMode {
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The name of the link's pin.
    pub const fn link(self) -> &'static str {
        match self {
            Self::Native => "from_device_native",
            Self::Generic => "from_device_generic",
        }
    }

    /// `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE` of `linux/if_link.h`.
    const fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

/// Where to attach.
enum Target<'a> {
    Interface(u32),
    Device { ifindex: u32, mode: DeviceMode },
    Cgroup { directory: BorrowedFd<'a>, id: u64 },
}

const POD_PREFIX: &str = "pod-";

impl Dataplane {
    /// Attaches `from_pod` to the host side of a pod's veth. `name` names the link (`pod-<name>`): the interface's
    /// name, or the pod's uid.
    ///
    /// # Errors
    ///
    /// When `name` does not fit, when there is no such interface in the calling thread's network namespace, when the
    /// kernel is older than 6.6.
    pub fn attach_pod(&self, name: &str, ifindex: u32) -> Result<Attached, Error> {
        self.attach(
            &pod_link(name)?,
            Program::FromPod,
            &Target::Interface(ifindex),
        )
    }

    /// Removes the link of a pod, which detaches its program; `false` if there was none.
    ///
    /// # Errors
    ///
    /// When `name` does not fit or the pin cannot be removed.
    pub fn detach_pod(&self, name: &str) -> Result<bool, Error> {
        self.detach(&pod_link(name)?)
    }

    /// Attaches `from_network` to the uplink.
    ///
    /// # Errors
    ///
    /// As for [`Dataplane::attach_pod`].
    pub fn attach_uplink(&self, ifindex: u32) -> Result<Attached, Error> {
        let program = Program::FromNetwork;
        self.attach(program.name(), program, &Target::Interface(ifindex))
    }

    /// Attaches `from_vxlan` to the kernel's VXLAN device.
    ///
    /// # Errors
    ///
    /// As for [`Dataplane::attach_pod`].
    pub fn attach_vxlan(&self, ifindex: u32) -> Result<Attached, Error> {
        let program = Program::FromVxlan;
        self.attach(program.name(), program, &Target::Interface(ifindex))
    }

    /// Attaches `from_device` to the uplink, before everything else there; a link of the other mode goes first, since a
    /// device has one.
    ///
    /// # Errors
    ///
    /// As for [`Dataplane::attach_pod`]; natively also when the device's driver cannot, or not at its MTU.
    pub fn attach_device(&self, ifindex: u32, mode: DeviceMode) -> Result<Attached, Error> {
        for other in DeviceMode::ALL {
            if other != mode {
                self.detach(other.link())?;
            }
        }
        let target = Target::Device { ifindex, mode };
        self.attach(mode.link(), Program::FromDevice, &target)
    }

    /// Removes the links of `from_device`.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn detach_device(&self) -> Result<(), Error> {
        for mode in DeviceMode::ALL {
            self.detach(mode.link())?;
        }
        Ok(())
    }

    /// Attaches `from_host` to the way out of `fairlead0`.
    ///
    /// # Errors
    ///
    /// As for [`Dataplane::attach_pod`].
    pub fn attach_host(&self, ifindex: u32) -> Result<Attached, Error> {
        let program = Program::FromHost;
        self.attach(program.name(), program, &Target::Interface(ifindex))
    }

    /// Attaches the socket programs to a cgroup (v2) and all below it.
    ///
    /// # Errors
    ///
    /// When `cgroup` is no directory of a cgroup2 file system.
    pub fn attach_cgroup(&self, cgroup: &Path) -> Result<Vec<(Program, Attached)>, Error> {
        let open = || {
            let directory = fs::File::open(cgroup)?;
            // The kernel's id of a cgroup is its inode number.
            let id = directory.metadata()?.ino();
            Ok((directory, id))
        };
        let (directory, id) = open().map_err(|source| Error::File {
            action: "open cgroup",
            path: cgroup.into(),
            source,
        })?;
        Program::CGROUP
            .into_iter()
            .map(|program| {
                let target = Target::Cgroup {
                    directory: directory.as_fd(),
                    id,
                };
                Ok((program, self.attach(program.name(), program, &target)?))
            })
            .collect()
    }

    /// Removes a link by its pin's name, which detaches its program; `false` if there was none.
    ///
    /// # Errors
    ///
    /// When the name does not fit or the pin cannot be removed.
    pub fn detach(&self, name: &str) -> Result<bool, Error> {
        let path = self.link_path(name)?;
        let failed = |action| {
            let name = name.to_owned();
            move |source| Error::Link {
                action,
                name,
                source,
            }
        };
        let Some(link) = sys::obj_get(&path, Access::ReadWrite).map_err(failed("open"))? else {
            return Ok(false);
        };
        match sys::link_detach(link.as_fd()) {
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
                return Err(failed("detach")(error));
            }
            _ => {}
        }
        fs::remove_file(&path).map_err(failed("remove"))?;
        Ok(true)
    }

    /// The pinned links, by name.
    ///
    /// # Errors
    ///
    /// When the pins cannot be read.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        links(&self.pin_dir)
    }

    /// The names under which pods are attached, as they were given to [`Dataplane::attach_pod`].
    ///
    /// # Errors
    ///
    /// When the pins cannot be read.
    pub fn attached_pods(&self) -> Result<Vec<String>, Error> {
        let links = self.links()?;
        Ok(links
            .iter()
            .filter_map(|link| link.name.strip_prefix(POD_PREFIX).map(String::from))
            .collect())
    }

    fn attach(&self, name: &str, program: Program, target: &Target<'_>) -> Result<Attached, Error> {
        let path = self.link_path(name)?;
        let failed = |action| {
            let name = name.to_owned();
            move |source| Error::Link {
                action,
                name,
                source,
            }
        };
        let loaded = self.program(program);
        if let Some(link) = sys::obj_get(&path, Access::ReadWrite).map_err(failed("open"))? {
            let info = sys::link_info(link.as_fd()).map_err(failed("read"))?;
            if target.is(info.kind, program) {
                if self
                    .is_same(program, info.prog_id)
                    .map_err(failed("compare the program of"))?
                {
                    return Ok(Attached::Adopted);
                }
                sys::link_update(link.as_fd(), loaded.fd())
                    .map_err(failed("replace the program of"))?;
                tracing::info!(link = name, %program, "program replaced");
                return Ok(Attached::Replaced);
            }
            tracing::info!(link = name, was = ?info.kind, "link is stale: attaching anew");
            fs::remove_file(&path).map_err(failed("remove stale"))?;
        }
        let link = target
            .create(loaded.fd(), program)
            .map_err(|error| attach_error(error, name, target))?;
        sys::obj_pin(link.as_fd(), &path).map_err(failed("pin"))?;
        tracing::debug!(link = name, link_id = ?sys::link_info(link.as_fd()).map(|info| info.id), "attached");
        Ok(Attached::Created)
    }

    fn link_path(&self, name: &str) -> Result<PathBuf, Error> {
        let fits = (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !fits {
            return Err(Error::LinkName { name: name.into() });
        }
        Ok(links_dir(&self.pin_dir).join(name))
    }
}

/// The links that are pinned in a pin directory, by name; needs no agent.
///
/// # Errors
///
/// When the pins cannot be read.
pub fn links(pin_dir: &Path) -> Result<Vec<Link>, Error> {
    let dir = links_dir(pin_dir);
    let mut links = Vec::new();
    for entry in fs::read_dir(&dir).map_err(file_error("list the links in", &dir))? {
        let name = entry
            .map_err(file_error("list the links in", &dir))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let info = sys::obj_get(&dir.join(&name), Access::ReadWrite)
            .and_then(|fd| fd.map(|fd| sys::link_info(fd.as_fd())).transpose())
            .map_err(|source| Error::Link {
                action: "open",
                name: name.clone(),
                source,
            })?;
        // Removed since the directory was read.
        let Some(info) = info else { continue };
        links.push(Link {
            name,
            target: target_of(info.kind),
            program_id: info.prog_id,
        });
    }
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(links)
}

impl Target<'_> {
    /// Whether a link of this kind hangs where it should.
    fn is(&self, kind: LinkKind, program: Program) -> bool {
        let attach_type = program.attach_type();
        match *self {
            Self::Interface(ifindex) => {
                kind == LinkKind::Tcx {
                    ifindex,
                    attach_type,
                }
            }
            Self::Device { ifindex, .. } => kind == LinkKind::Xdp { ifindex },
            Self::Cgroup { id, .. } => {
                kind == LinkKind::Cgroup {
                    cgroup_id: id,
                    attach_type,
                }
            }
        }
    }

    fn create(&self, fd: BorrowedFd<'_>, program: Program) -> io::Result<std::os::fd::OwnedFd> {
        let (target, flags) = match self {
            Self::Interface(ifindex) => (*ifindex, 0),
            Self::Device { ifindex, mode } => (*ifindex, mode.flags()),
            Self::Cgroup { directory, .. } => (directory.as_raw_fd() as u32, 0),
        };
        sys::link_create(fd, target, program.attach_type(), flags)
    }
}

fn pod_link(name: &str) -> Result<String, Error> {
    if name.is_empty() {
        return Err(Error::LinkName { name: name.into() });
    }
    Ok(format!("{POD_PREFIX}{name}"))
}

fn target_of(kind: LinkKind) -> LinkTarget {
    match kind {
        LinkKind::Tcx { ifindex: 0, .. }
        | LinkKind::Xdp { ifindex: 0 }
        | LinkKind::Cgroup { cgroup_id: 0, .. } => LinkTarget::Gone,
        LinkKind::Tcx { ifindex, .. } | LinkKind::Xdp { ifindex } => {
            LinkTarget::Interface { ifindex }
        }
        LinkKind::Cgroup { cgroup_id, .. } => LinkTarget::Cgroup { id: cgroup_id },
        LinkKind::Other => LinkTarget::Gone,
    }
}

fn attach_error(error: io::Error, name: &str, target: &Target<'_>) -> Error {
    let release = sys::kernel_release();
    match target {
        Target::Interface(ifindex) if !has_tcx(&release) => Error::TcxUnsupported {
            ifindex: *ifindex,
            release,
        },
        _ => Error::Link {
            action: "create",
            name: name.into(),
            source: error,
        },
    }
}

/// Whether a kernel of this release has tcx. One whose release cannot be read is taken to have it.
fn has_tcx(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 6),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcx_is_there_from_6_6_on() {
        for (release, expected) in [
            ("6.1.0-18-amd64", false),
            ("5.15.0", false),
            ("6.5.13", false),
            ("6.6.0", true),
            ("6.18.44-custom", true),
            ("7.0", true),
            ("unknown", true),
        ] {
            assert_eq!(has_tcx(release), expected, "{release}");
        }
    }
}
