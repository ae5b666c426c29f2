//! The program with identities: TLS with an authority of its own, roles, tokens that outlive a restart, an audit log, and an
//! end that is announced.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{ask, fails, free_port, start_with, terminate};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

/// What `admin.conf` says, as kubectl would read it.
fn admin(folder: &Path) -> (ClientConfig, Value) {
    let text = std::fs::read_to_string(folder.join("pki/admin.conf")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let data = |pointer: &str| {
        let text = config.pointer(pointer).unwrap().as_str().unwrap();
        STANDARD.decode(text).unwrap()
    };
    let authority = data("/clusters/0/cluster/certificate-authority-data");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&authority).unwrap())
        .unwrap();
    let certificate = data("/users/0/user/client-certificate-data");
    let key = data("/users/0/user/client-key-data");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&certificate).unwrap()],
            PrivateKeyDer::from_pem_slice(&key).unwrap(),
        )
        .unwrap();
    (client, config)
}

/// One request over TLS.
fn ask_tls(client: &ClientConfig, address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let name = ServerName::try_from(address.ip().to_string()).unwrap();
    let connection = ClientConnection::new(Arc::new(client.clone()), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    let request = format!(
        "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// Asks until something is there.
fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const NAMESPACES: &str = "/api/v1/namespaces";

#[test]
fn roles_decide_and_the_administrator_comes_in_by_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, secure) = (free_port(), free_port());
    let audit = folder.path().join("audit.log");
    let policy = folder.path().join("policy.yaml");
    let rules = "{apiVersion: audit.k8s.io/v1, kind: Policy, omitStages: [RequestReceived], rules: [{level: Metadata, userGroups: ['system:masters']}]}";
    std::fs::write(&policy, rules).unwrap();
    let flags = [
        "--authorization-mode=rbac",
        &format!("--tls-listen={secure}"),
        &format!("--audit-policy-file={}", policy.display()),
        &format!("--audit-log-path={}", audit.display()),
    ];
    let mut daemon = start_with(folder.path(), plain, &flags);
    let (code, body) = ask(plain, "GET", NAMESPACES, "").unwrap();
    assert_eq!(code, 403, "{body}");
    assert!(body.contains("User \\\"system:anonymous\\\" cannot list resource \\\"namespaces\\\""));

    let (client, config) = admin(folder.path());
    assert_eq!(
        config["clusters"][0]["cluster"]["server"],
        format!("https://{secure}")
    );
    let (code, body) = ask_tls(&client, secure, &format!("GET {NAMESPACES}"), "");
    assert_eq!(code, 200, "{body}");
    // The controllers and the scheduler may do their work: a Deployment gets its Pod, and the Pod its node.
    let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1", "pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}]}});
    ask_tls(&client, secure, "POST /api/v1/nodes", &node.to_string());
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let made = ask_tls(
        &client,
        secure,
        "POST /apis/apps/v1/namespaces/default/deployments",
        &deployment.to_string(),
    );
    assert_eq!(made.0, 201, "{}", made.1);
    wait_for("a pod on the node", || {
        let (_, body) = ask_tls(&client, secure, "GET /api/v1/namespaces/default/pods", "");
        body.contains("\"nodeName\":\"n\"").then_some(())
    });

    // A token is good after a restart too.
    let account = json!({"metadata": {"name": "robot"}}).to_string();
    ask_tls(
        &client,
        secure,
        "POST /api/v1/namespaces/default/serviceaccounts",
        &account,
    );
    let (code, body) = ask_tls(
        &client,
        secure,
        "POST /api/v1/namespaces/default/serviceaccounts/robot/token",
        "{}",
    );
    assert_eq!(code, 201, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    terminate(&daemon);
    assert!(daemon.0.wait().unwrap().success());
    let log = std::fs::read_to_string(&audit).unwrap();
    assert!(
        log.contains("\"username\":\"kubernetes-admin\"")
            && log.contains("\"resource\":\"deployments\"")
    );
    assert!(
        !log.contains("system:kube-scheduler"),
        "the policy is about others only"
    );

    let _again = start_with(folder.path(), plain, &flags);
    let (client, _) = admin(folder.path());
    let who = format!(
        "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nAuthorization: Bearer {token}\r\nX-Rest:"
    );
    let mut without = client;
    without.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (code, body) = ask_tls(&without, secure, &who, "{}");
    assert_eq!(code, 201, "{body}");
    assert!(
        body.contains("\"username\":\"system:serviceaccount:default:robot\""),
        "{body}"
    );
}

/// A client without a certificate.
#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn before_it_ends_it_says_that_it_will_and_still_serves() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_port();
    let mut daemon = start_with(folder.path(), address, &["--shutdown-delay-duration=3s"]);
    terminate(&daemon);
    let began = Instant::now();
    let said = wait_for("not ready", || {
        let (code, body) = ask(address, "GET", "/readyz", "")?;
        (code == 503).then_some(body)
    });
    assert!(said.contains("[-]shutdown failed"), "{said}");
    assert_eq!(ask(address, "GET", "/livez", "").unwrap().0, 200);
    let map = r#"{"metadata":{"name":"late"}}"#;
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(ask(address, "POST", maps, map).unwrap().0, 201);
    assert!(daemon.0.wait().unwrap().success());
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn flags_that_make_no_sense_say_so() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, why) in [
        (
            &["--tls-listen=0.0.0.0:0"][..],
            "add --authorization-mode=RBAC",
        ),
        (&["--audit-log-path=-"], "give --audit-policy-file too"),
        (&["--max-requests-inflight=0"], "give at least 1"),
        (&["--request-timeout=soon"], "give one as in 30s or 1m30s"),
        (&["--token-auth-file=/nowhere"], "cannot read /nowhere"),
        (
            &["--service-account-signing-key-file=/nowhere"],
            "cannot read the signing key /nowhere",
        ),
    ] {
        let listen = ["--listen", "127.0.0.1:0"];
        let said = fails(folder.path(), &[&listen[..], flags].concat());
        assert!(said.contains(why), "{flags:?}: {said}");
    }
}
