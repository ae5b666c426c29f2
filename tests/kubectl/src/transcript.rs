//! Running the commands of a case, and what is left of their output when all that differs from run to run is gone.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use regex::Regex;
use tempfile::TempDir;
use tokio::process::Command;

use crate::case::Case;
use crate::find;

/// Far longer than any command of a case takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Objects of every kind, for all tests.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/manifests");

/// What differs from run to run, and the word that stands for it. The order matters.
const VOLATILE: &[(&str, &str)] = &[
    (r"(https?://)?127\.0\.0\.1:\d+", "SERVER"),
    (
        r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
        "UID",
    ),
    (
        r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| [+-]\d{4} UTC)?",
        "TIME",
    ),
    (
        r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}",
        "DATE",
    ),
    (
        r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) \w{3} +\d+ \d\d:\d\d:\d\d \d{4}",
        "DATE",
    ),
    (r#"(?i)("?resource ?version"?: *"?)\d+"#, "${1}VERSION"),
    (r"((Client|Server) Version: )\S+", "${1}VERSION"),
    // Ages of a table: padded to three, so that the columns behind them stand.
    (r"(?m)(^|[ \t])\d+m\d+s( |\t|\)|$)", "${1}AGE${2}"),
    (r"(?m)(^|[ \t])\d{2}s( |\t|\)|$)", "${1}AGE${2}"),
    (r"(?m)(^|[ \t])\ds(  )", "${1}AGE "),
    (r"(?m)(^|[ \t])\ds( |\t|\)|$)", "${1}AGE${2}"),
    // What our server warns of, and a kube-apiserver has no reason to.
    (r"(?m)^Warning: this server .*\n", ""),
    // What kubectl logs when its own time-out ends a watch of its.
    (r"(?m)^[EIW]\d{4} .* reflector\.go:.*\n", ""),
    // kubectl pads the last column too.
    (r"(?m)[ \t]+$", ""),
];

static PATTERNS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let compile = |(pattern, word): &(&str, &'static str)| {
        (
            Regex::new(pattern).expect("the patterns above are regular expressions"),
            *word,
        )
    };
    VOLATILE.iter().map(compile).collect()
});

/// A folder with a case's files, in which its commands run and reach one server.
#[derive(Debug)]
pub struct Shell {
    folder: TempDir,
}

impl Shell {
    /// # Errors
    /// When there is no kubectl or no helm, or a file cannot be written.
    pub fn new(case: &Case, kubeconfig: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let root = folder.path();
        let programs = root.join(".bin");
        std::fs::create_dir(&programs)?;
        for (tool, variable) in [("kubectl", "FAIRLEAD_KUBECTL"), ("helm", "FAIRLEAD_HELM")] {
            std::os::unix::fs::symlink(find(tool, variable)?, programs.join(tool))?;
        }
        std::fs::write(root.join(".kubeconfig"), kubeconfig)?;
        for (name, text) in &case.files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(root))?;
            std::fs::write(&path, text).with_context(|| format!("cannot write {name}"))?;
        }
        Ok(Self { folder })
    }

    /// What the command prints, without what differs from run to run, and `[exit N]` when it fails.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub async fn run(&self, command: &str) -> Result<String> {
        let root = self.folder.path();
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new("sh")
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(root)
            .env_clear()
            .env("HOME", root)
            .env("KUBECONFIG", root.join(".kubeconfig"))
            .env("LC_ALL", "C.UTF-8")
            .env("MANIFESTS", MANIFESTS)
            .env("PATH", format!("{}:{path}", root.join(".bin").display()))
            .env("TMPDIR", root)
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // With what it starts.
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let output = match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
            Ok(output) => output?,
            Err(_) => {
                if let Some(leader) = group {
                    killpg(Pid::from_raw(leader), Signal::SIGKILL)?;
                }
                bail!("`{command}` did not end within {PATIENCE:?}")
            }
        };
        let mut text = settled(&String::from_utf8_lossy(&output.stdout), root);
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        match (output.status.code(), output.status.signal()) {
            (Some(0), _) => {}
            (Some(code), _) => text.push_str(&format!("[exit {code}]\n")),
            (None, signal) => bail!("`{command}` was ended by signal {signal:?}"),
        }
        Ok(text)
    }
}

/// The text with a word for everything that differs from run to run.
fn settled(text: &str, folder: &Path) -> String {
    let mut text = text.replace(&folder.display().to_string(), "DIR");
    for (pattern, word) in PATTERNS.iter() {
        text = pattern.replace_all(&text, *word).into_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_is_gone_and_columns_stand() {
        let said = |text| settled(text, Path::new("/tmp/x"));
        assert_eq!(
            said("NAME   AGE   LABELS\na      3s    app=web\nb      12s   <none>\n"),
            "NAME   AGE   LABELS\na      AGE   app=web\nb      AGE   <none>\n"
        );
        assert_eq!(
            said("  resourceVersion: \"17\"\n"),
            "  resourceVersion: \"VERSION\"\n"
        );
        assert_eq!(
            said("at 2026-01-01T00:00:00Z, http://127.0.0.1:8001/api, in /tmp/x/y  \n"),
            "at TIME, SERVER/api, in DIR/y\n"
        );
        assert_eq!(said("1b671a64-40d5-491e-99b0-da01ff1f3341"), "UID");
        // Numbers that say something stay.
        assert_eq!(said("Port: 80s/TCP 300s"), "Port: 80s/TCP 300s");
    }
}
