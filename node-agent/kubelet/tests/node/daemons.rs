//! The processes and images of a test's node.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::TestNode;

/// Where the API server listens: the namespace is the test's own.
pub const SERVER: &str = "127.0.0.1:6443";
/// Names the folder of the programs where all are built already.
const PROGRAMS: &str = "FAIRLEAD_PROGRAMS";

impl TestNode {
    pub fn import_images(&self) {
        let root = self.path("image");
        let bin = root.join("bin");
        fs::create_dir_all(&bin).unwrap();
        for directory in ["tmp", "etc", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in [
            "sh", "sleep", "cat", "echo", "httpd", "ip", "wget", "env", "touch", "rm", "hostname",
            "date", "seq", "tar", "head", "mkdir", "wc", "stty", "tty", "true", "test", "ls",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        let archive = self.path("image.tar");
        let made = Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status()
            .unwrap();
        assert!(made.success());
        let archive = archive.display().to_string();
        for (image, change) in [
            ("fairlead/pause:latest", r#"CMD ["/bin/sleep", "1000000"]"#),
            ("busybox:1", "ENV PATH=/bin"),
        ] {
            self.docker(&["import", "-c", change, &archive, image])
                .unwrap();
        }
    }
}

pub fn start_dockerd(directory: &Path) -> Child {
    let log = File::create(directory.join("dockerd.log")).unwrap();
    let at = |name: &str| directory.join(name).display().to_string();
    Command::new("dockerd")
        .args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ])
        .args([
            "-H",
            &format!("unix://{}", at("docker.sock")),
            "--data-root",
            &at("data"),
            "--exec-root",
            &at("exec"),
        ])
        .args(["--pidfile", &at("docker.pid")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The API server: the control plane's binary, beside this test's, built if need be.
pub fn start_server(directory: &Path) -> Child {
    let log = File::create(directory.join("server.log")).unwrap();
    Command::new(server_binary())
        .args(["--role", "apiserver", "--listen", SERVER, "--data-dir"])
        .arg(directory.join("control-plane"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A part of the control plane that is a client of the API server.
pub fn start_client(directory: &Path, role: &str) -> Child {
    let log = File::create(directory.join(format!("{role}.log"))).unwrap();
    Command::new(server_binary())
        .args(["--role", role, "--server", &format!("http://{SERVER}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn server_binary() -> PathBuf {
    if let Some(folder) = std::env::var_os(PROGRAMS) {
        return PathBuf::from(folder).join("fairlead-control-plane");
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "control-plane-daemon"])
        .status()
        .unwrap();
    assert!(
        built.success(),
        "control-plane-daemon does not build; {PROGRAMS} can name the folder of a built one"
    );
    let own = std::env::current_exe().unwrap();
    own.ancestors()
        .nth(2)
        .unwrap()
        .join("fairlead-control-plane")
}

pub fn stop(child: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let _ = kill(pid, Signal::SIGTERM);
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
}
