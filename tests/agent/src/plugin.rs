//! A CNI plugin as a container runtime calls it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tests_testkit::NetNs;

/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// A plugin on one node.
#[derive(Clone, Debug)]
pub struct Plugin<'a> {
    /// Where the runtime runs.
    pub netns: &'a NetNs,
    pub program: PathBuf,
    /// Ours asks the agent here.
    pub socket: Option<PathBuf>,
}

/// A plugin of the package `containernetworking-plugins`; `None` if it is not installed.
#[must_use]
pub fn reference<'a>(name: &str, netns: &'a NetNs) -> Option<Plugin<'a>> {
    let program = PathBuf::from(REFERENCE).join(name);
    program.exists().then_some(Plugin {
        netns,
        program,
        socket: None,
    })
}

impl Plugin<'_> {
    /// A configuration of the network `pods` in one version, with further fields.
    #[must_use]
    pub fn conf(&self, version: &str, more: &Value) -> Value {
        let kind = self.program.file_name().map(|name| name.to_string_lossy());
        let mut conf = json!({"cniVersion": version, "name": "pods", "type": kind});
        if let Some(socket) = &self.socket {
            conf["socket"] = json!(socket);
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        conf
    }

    /// Starts a command for the interface `eth0` of a container; `netns` is the path of its namespace.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        conf: &Value,
    ) -> Result<Child> {
        let mut process = Command::new(&self.program);
        process
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", REFERENCE)
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}"),
            )
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !netns.is_empty() {
            process.env("CNI_NETNS", netns);
        }
        let mut child = self
            .netns
            .run(|| process.spawn())
            .with_context(|| format!("start {}", self.program.display()))?;
        let mut input = child.stdin.take().context("the standard input is a pipe")?;
        input.write_all(conf.to_string().as_bytes())?;
        Ok(child)
    }

    /// Calls a command and waits; `Null` if it printed nothing.
    ///
    /// # Errors
    ///
    /// When it fails, with what it printed.
    pub fn call(&self, command: &str, container: &str, netns: &str, conf: &Value) -> Result<Value> {
        let output = self
            .start(command, container, netns, conf)?
            .wait_with_output()?;
        answer(&output)
    }

    /// As [`Plugin::call`], and must fail; answers the error that it printed.
    ///
    /// # Errors
    ///
    /// When it does not fail or prints no error.
    pub fn refused(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        conf: &Value,
    ) -> Result<Value> {
        let output = self
            .start(command, container, netns, conf)?
            .wait_with_output()?;
        if output.status.success() {
            bail!("{command} did not fail");
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// What a plugin printed.
///
/// # Errors
///
/// When it failed.
fn answer(output: &Output) -> Result<Value> {
    if !output.status.success() {
        bail!(
            "{}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
