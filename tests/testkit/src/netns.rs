//! Network namespaces that live as long as their guard: held by a descriptor, without a name.

use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns, unshare},
};

const POLL: Duration = Duration::from_millis(5);

/// A network namespace with `lo` up. The kernel removes it, with its interfaces, when the guard and the last thread
/// in it are gone.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    pub netns: &'a NetNs,
    pub name: &'a str,
    pub mac: [u8; 6],
}

impl NetNs {
    /// # Errors
    ///
    /// When this process may not make namespaces.
    pub fn new() -> Result<Self> {
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            let path = "/proc/thread-self/ns/net";
            File::open(path).with_context(|| format!("open {path}"))
        })?;
        let netns = Self { file };
        netns.run(|| {
            // Addresses are usable at once, interfaces that are made later included.
            for interface in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad");
                std::fs::write(&path, "0").with_context(|| format!("write {path}"))?;
            }
            anyhow::Ok(())
        })?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Another guard of the same namespace.
    ///
    /// # Errors
    ///
    /// When this process has too many descriptors.
    pub fn again(&self) -> Result<Self> {
        let file = self.file.try_clone().context("copy a descriptor")?;
        Ok(Self { file })
    }

    /// Runs `work` inside, on a thread of its own; a panic in it comes out here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_own_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .expect("a namespace that a descriptor holds can be entered by who made it");
            work()
        })
    }

    /// Runs asynchronous `work` inside, on a runtime of its own.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .expect("a runtime needs descriptors only")
                .block_on(work())
        })
    }

    /// Runs commands of ip(8), one a line, without the word `ip`.
    ///
    /// # Errors
    ///
    /// With the message of the first command that failed; the later ones were not run.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let output = self.run(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .context("start ip, from the package iproute2")?;
            let mut stdin = child.stdin.take().context("the standard input is a pipe")?;
            stdin
                .write_all(commands.as_bytes())
                .context("write to ip")?;
            drop(stdin);
            child.wait_with_output().context("wait for ip")
        })?;
        if !output.status.success() {
            bail!(
                "ip: {}\nin:\n{commands}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Turns an offload of an interface on or off, by its name in ethtool(8).
    ///
    /// # Errors
    ///
    /// When there is no such interface or offload.
    pub fn offload(&self, interface: &str, feature: &str, on: bool) -> Result<()> {
        let value = if on { "on" } else { "off" };
        let output = self.run(|| {
            Command::new("ethtool")
                .args(["-K", interface, feature, value])
                .output()
                .context("start ethtool, from the package of that name")
        })?;
        if !output.status.success() {
            bail!(
                "ethtool -K {interface} {feature} {value}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// The index of an interface.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn ifindex(&self, name: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(name))
            .with_context(|| format!("interface {name}"))
    }

    /// Writes a kernel parameter of this namespace, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When there is none of that name or it does not take the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{name}");
        self.run(|| std::fs::write(&path, value))
            .with_context(|| format!("write {path}"))
    }

    /// A path by which other processes reach the namespace as long as the guard lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Makes a veth pair, both ends up.
    ///
    /// # Errors
    ///
    /// When a name is taken or too long.
    pub fn veth(a: VethEnd<'_>, b: VethEnd<'_>, mtu: u32) -> Result<()> {
        a.netns.ip(&format!(
            "link add {} address {} mtu {mtu} type veth peer name {} address {} mtu {mtu} netns {}\n\
             link set {} up",
            a.name,
            mac_text(a.mac),
            b.name,
            mac_text(b.mac),
            b.netns.path(),
            a.name,
        ))?;
        b.netns.ip(&format!("link set {} up", b.name))?;
        a.netns.wait_running(a.name)?;
        b.netns.wait_running(b.name)
    }

    /// Waits until an interface that was set up passes packets: the kernel drops them silently until a worker of its
    /// own has seen the carrier, which takes long on a busy machine.
    ///
    /// # Errors
    ///
    /// When that takes more than ten seconds.
    pub fn wait_running(&self, name: &str) -> Result<()> {
        let running = || {
            let interfaces = getifaddrs().context("list the interfaces")?;
            anyhow::Ok(interfaces.into_iter().any(|interface| {
                interface.interface_name == name
                    && interface.flags.contains(InterfaceFlags::IFF_RUNNING)
            }))
        };
        self.run(|| {
            for _ in 0..2000 {
                if running()? {
                    // The flag is set a moment before the queue is opened and bridges are told.
                    thread::sleep(POLL);
                    return Ok(());
                }
                thread::sleep(POLL);
            }
            bail!("interface {name} does not come up");
        })
    }
}

/// As ip(8) writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
