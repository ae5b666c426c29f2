//! Where the state is: in etcd, in a backup, and on the way from one store to another.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use common::{Daemon, ask, command, fails, free_port, start, start_with, terminate};
use control_plane_store::conformance::Place;
use control_plane_store::etcd::Tls;
use control_plane_store::etcd::testing::LocalEtcd;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn create(address: SocketAddr, name: &str) {
    let body = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"a":"{name}"}}}}"#);
    assert_eq!(ask(address, "POST", MAPS, &body).expect("an answer").0, 201);
}

/// The object's resourceVersion, if it is there.
fn version(address: SocketAddr, name: &str) -> Option<u64> {
    let (code, body) = ask(address, "GET", &format!("{MAPS}/{name}"), "").expect("an answer");
    let object: serde_json::Value = serde_json::from_str(json(&body)).expect("JSON");
    let version = object["metadata"]["resourceVersion"].as_str()?;
    assert_eq!((code, &object["data"]["a"]), (200, &name.into()));
    version.parse().ok()
}

/// The JSON of a body that may come in chunks.
fn json(body: &str) -> &str {
    let begin = body.find('{').expect("an object");
    &body[begin..=body.rfind('}').expect("an object")]
}

/// Runs a command of the program; answers what it printed.
fn does(dir: &Path, args: &[&str]) -> String {
    let output = command(dir, args)
        .stdout(std::process::Stdio::piped())
        .output();
    let output = output.expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn stop(mut daemon: Daemon) {
    terminate(&daemon);
    assert!(daemon.0.wait().expect("it ends").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_etcd_servers_etcdctl_reads_what_kubectl_wrote() {
    let mut etcd = LocalEtcd::new().await;
    let urls = etcd.urls().join(",");
    let dir = tempfile::tempdir().unwrap();
    let address = free_port();
    let daemon = start_with(dir.path(), address, &["--etcd-servers", &urls]);
    create(address, "m");
    let seen = version(address, "m").unwrap();
    let read = Command::new("etcdctl")
        .args([
            "--endpoints",
            &urls,
            "get",
            "/registry/configmaps/default/m",
            "-w",
            "json",
        ])
        .env("ETCDCTL_API", "3")
        .output();
    let read = read.expect("etcdctl runs; `cargo xtask setup` installs it");
    let read: serde_json::Value = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(read["kvs"][0]["mod_revision"], seen);
    let values = Command::new("etcdctl")
        .args([
            "--endpoints",
            &urls,
            "get",
            "/registry/configmaps/default/m",
            "--print-value-only",
        ])
        .env("ETCDCTL_API", "3")
        .output()
        .unwrap();
    let object: serde_json::Value = serde_json::from_slice(&values.stdout).unwrap();
    assert_eq!(object["data"]["a"], "m");
    assert!(
        !dir.path().join("store.redb").exists(),
        "nothing is kept beside etcd"
    );

    // etcd is away for a while: an error that a client can wait for, and everything again after.
    etcd.kill(0);
    let (code, body) = ask(address, "GET", &format!("{MAPS}/m"), "").unwrap();
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("none of the etcd servers"), "{body}");
    etcd.revive(0);
    etcd.wait_for(0).await;
    assert_eq!(version(address, "m"), Some(seen));
    create(address, "n");
    stop(daemon);
    let _again = start_with(dir.path(), address, &["--etcd-servers", &urls]);
    assert_eq!(version(address, "m"), Some(seen));
}

#[test]
fn a_backup_of_a_running_cluster_is_restored_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let backup = backup.to_str().unwrap();
    let address = free_port();
    let daemon = start(dir.path(), address);
    create(address, "before");
    let said = does(dir.path(), &["store", "backup", backup]);
    assert!(said.starts_with("backed up "), "{said}");
    create(address, "after");
    let newest = version(address, "after").unwrap();
    let said = fails(dir.path(), &["store", "backup", backup]);
    assert!(said.contains("is there already"), "{said}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(backup).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "secrets are in it");
    let said = fails(dir.path(), &["store", "restore", backup, "--overwrite"]);
    assert!(said.contains("open in another process"), "{said}");
    stop(daemon);

    // Over the store that it is of, and in a new place: no revision is handed out twice.
    let said = fails(dir.path(), &["store", "restore", backup]);
    assert!(said.contains("give --overwrite"), "{said}");
    let elsewhere = tempfile::tempdir().unwrap();
    for (place, flags) in [
        (elsewhere.path(), &["store", "restore", backup][..]),
        (dir.path(), &["store", "restore", backup, "--overwrite"]),
    ] {
        does(place, flags);
        let daemon = start(place, address);
        assert!(version(address, "before").unwrap() < newest);
        assert_eq!(version(address, "after"), None);
        create(address, "later");
        assert!(version(address, "later").unwrap() > newest);
        stop(daemon);
    }
    let kept = fs::read_dir(dir.path()).unwrap();
    let kept = kept.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("store.redb.replaced-")
    });
    assert_eq!(kept.count(), 1, "the old store is kept");
    // Without a running control plane it works as well.
    does(dir.path(), &["store", "backup", &format!("{backup}-2")]);
}

#[test]
fn a_damaged_backup_or_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_port();
    let daemon = start(dir.path(), address);
    create(address, "m");
    let backup = dir.path().join("backup");
    let name = backup.to_str().unwrap();
    does(dir.path(), &["store", "backup", name]);
    stop(daemon);
    let whole = fs::read(&backup).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    for (bytes, why) in [
        (&whole[..whole.len() - 1], "ends before its end"),
        (&flipped, "damaged"),
        (
            &b"shopping list, and more than that"[..],
            "no backup of a store",
        ),
    ] {
        fs::write(&backup, bytes).unwrap();
        let said = fails(fresh.path(), &["store", "restore", name]);
        assert!(said.contains(why) && said.contains(name), "{said}");
        assert!(!fresh.path().join("store.redb").exists());
    }
    // A damaged store ends the start with its name and the way out, and a backup takes its place.
    fs::write(&backup, &whole).unwrap();
    let store = dir.path().join("store.redb");
    let file = fs::OpenOptions::new().write(true).open(&store).unwrap();
    file.set_len(10_000).unwrap();
    let said = fails(dir.path(), &["--listen", "127.0.0.1:0"]);
    assert!(
        said.contains("store.redb") && said.contains("restore it from a backup"),
        "{said}"
    );
    let said = fails(dir.path(), &["store", "restore", name]);
    assert!(said.contains("give --overwrite"), "{said}");
    does(dir.path(), &["store", "restore", name, "--overwrite"]);
    let _daemon = start(dir.path(), address);
    assert!(version(address, "m").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_migrates_to_etcd_and_back() {
    let etcd = LocalEtcd::new().await;
    let urls = etcd.urls().join(",");
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_str().unwrap();
    let address = free_port();
    let daemon = start(dir.path(), address);
    create(address, "m");
    let first = version(address, "m").unwrap();
    stop(daemon);

    let there = ["store", "migrate", "--from", place, "--to", &urls];
    let said = does(dir.path(), &there);
    assert!(
        said.starts_with("migrated ") && said.contains(&urls),
        "{said}"
    );
    let said = fails(dir.path(), &there);
    assert!(said.contains("give --overwrite"), "{said}");
    let with_etcd = ["--etcd-servers", &urls];
    let daemon = start_with(dir.path(), address, &with_etcd);
    let second = version(address, "m").unwrap();
    assert!(second > first, "{second}");
    create(address, "n");
    stop(daemon);

    let back = tempfile::tempdir().unwrap();
    let back_place = back.path().join("data");
    let back_place = back_place.to_str().unwrap();
    does(
        dir.path(),
        &["store", "migrate", "--from", &urls, "--to", back_place],
    );
    let _daemon = start(Path::new(back_place), address);
    assert_eq!(
        version(address, "m"),
        Some(second),
        "a file keeps the revisions"
    );
    assert!(version(address, "n").is_some());

    let said = fails(
        dir.path(),
        &["store", "migrate", "--from", "/nonexistent", "--to", &urls],
    );
    assert!(
        said.contains("there is no store /nonexistent/store.redb"),
        "{said}"
    );
    does(dir.path(), &[&there[..], &["--overwrite"]].concat());
}

#[test]
fn an_etcd_that_is_not_there_ends_the_start_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = format!("http://{}", free_port());
    let said = fails(dir.path(), &["--etcd-servers", &nobody]);
    assert!(
        said.contains(&format!("none of the etcd servers {nobody} answers")),
        "{said}"
    );
    assert!(said.contains("refused"), "the cause is told: {said}");
    let said = fails(dir.path(), &["--etcd-servers", "127.0.0.1:2379"]);
    assert!(said.contains("as in http://10.0.0.1:2379"), "{said}");
}

/// An authority, and a certificate of 127.0.0.1 with its key, as files.
fn certificates(dir: &Path) -> [String; 3] {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let ca = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.signed_by(&key, &issuer).unwrap();
    [
        ("ca.crt", ca.pem()),
        ("tls.crt", own.pem()),
        ("tls.key", key.serialize_pem()),
    ]
    .map(|(name, pem)| {
        let path = dir.join(name);
        fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_with_certificates_takes_ours_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = certificates(dir.path());
    let etcd = LocalEtcd::start_with(
        1,
        "https",
        &[
            "--cert-file",
            &certificate,
            "--key-file",
            &key,
            "--trusted-ca-file",
            &ca,
            "--client-cert-auth",
        ],
    );
    let read = |path: &str| fs::read(path).unwrap();
    let tls = Tls {
        ca: read(&ca),
        identity: Some((read(&certificate), read(&key))),
    };
    LocalEtcd::wait(&control_plane_store::etcd::Options {
        tls: Some(tls),
        ..etcd.options()
    })
    .await;
    let urls = etcd.urls().join(",");
    let trusting = ["--etcd-servers", &urls, "--etcd-cafile", &ca];
    let ours = ["--etcd-certfile", &certificate, "--etcd-keyfile", &key];
    let address = free_port();
    let daemon = start_with(dir.path(), address, &[trusting, ours].concat());
    create(address, "m");
    assert!(version(address, "m").is_some());
    stop(daemon);

    let said = fails(dir.path(), &trusting);
    assert!(said.contains("with https the certificates"), "{said}");
    let strangers = tempfile::tempdir().unwrap();
    let [other_ca, ..] = certificates(strangers.path());
    let distrusting = ["--etcd-servers", &urls, "--etcd-cafile", &other_ca];
    let said = fails(dir.path(), &[distrusting, ours].concat());
    assert!(said.contains("invalid peer certificate"), "{said}");
}
