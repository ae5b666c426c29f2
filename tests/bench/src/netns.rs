//! Network namespaces without names: each lives as long as its file descriptor, so that a killed bench leaves nothing.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. It goes, with every device in it, when the last descriptor of it is closed.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
}

/// Puts the thread back into the namespace that the process started in.
struct Home;

impl Netns {
    /// Makes an empty namespace and brings its loopback device up.
    pub fn new() -> Result<Self> {
        home()?;
        // A thread of its own, so that this one stays where it is.
        let made = thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("make a network namespace (are you root?)")?;
            Ok(open_current()?.into())
        });
        let fd = made
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that makes a namespace panicked"))??;
        let netns = Self { fd };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Moves this thread into the namespace until [`go_home`].
    pub fn enter(&self) -> Result<()> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// Runs `work` on this thread inside the namespace; children that it starts are born there.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.enter()?;
        let _home = Home;
        work()
    }

    /// Runs `ip -batch` inside: one command a line.
    pub fn ip(&self, script: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], script)
    }

    /// Runs `bridge -batch` inside: one command a line.
    pub fn bridge(&self, script: &str) -> Result<()> {
        self.feed("bridge", &["-batch", "-"], script)
    }

    /// Writes a sysctl of the namespace, for example `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| {
            let path = format!("/proc/sys/{name}");
            std::fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
        })
    }

    pub fn ifindex(&self, device: &str) -> Result<u32> {
        self.run(|| if_nametoindex(device).with_context(|| format!("find the device {device}")))
    }

    /// A path by which `ip link ... netns PATH` finds the namespace while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs a program inside with `input` at its standard input; what it prints is thrown away.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {program} (`cargo xtask setup` installs it)"))?;
            let mut stdin = child
                .stdin
                .take()
                .context("stdin of a child that was asked for a pipe")?;
            // A program that gives up early says why.
            let written = stdin.write_all(input.as_bytes());
            drop(stdin);
            let output = child.wait_with_output()?;
            if !output.status.success() {
                let start: String = input.chars().take(1000).collect();
                bail!(
                    "{program} failed: {}\n{start}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            Ok(written?)
        })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        go_home().expect(
            "the namespace that the process started in cannot go while its descriptor is open",
        );
    }
}

/// Moves this thread back into the namespace that the process started in.
pub fn go_home() -> Result<()> {
    setns(home()?, CloneFlags::CLONE_NEWNET).context("return to the first network namespace")
}

fn home() -> Result<&'static File> {
    static HOME: OnceLock<File> = OnceLock::new();
    if let Some(file) = HOME.get() {
        return Ok(file);
    }
    let file = open_current()?;
    Ok(HOME.get_or_init(|| file))
}

fn open_current() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("open /proc/thread-self/ns/net")
}
