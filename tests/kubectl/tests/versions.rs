//! kubectls of ten minor versions, each through one small flow with what it prints.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tests_kubectl::Server;

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: 'busybox:1', ports: [{containerPort: 80}]}]}
";

/// What is asked, with blanks between the words, and what every version answers. MANIFEST is a file with [`WEB`].
const FLOW: &[(&str, &str)] = &[
    ("apply -f MANIFEST", "deployment.apps/web created\n"),
    ("apply -f MANIFEST", "deployment.apps/web unchanged\n"),
    (
        "apply --server-side -f MANIFEST",
        "deployment.apps/web serverside-applied\n",
    ),
    ("diff -f MANIFEST", ""),
    ("get deployments -o name", "deployment.apps/web\n"),
    ("get deploy web -o jsonpath={.spec.replicas}", "1"),
    (
        "scale deployment web --replicas=2",
        "deployment.apps/web scaled\n",
    ),
    (
        "set image deployment/web c=busybox:2",
        "deployment.apps/web image updated\n",
    ),
    ("label deployment web a=b", "deployment.apps/web labeled\n"),
    ("expose deployment web", "service/web exposed\n"),
    (
        "create configmap settings --from-literal=a=1",
        "configmap/settings created\n",
    ),
    (
        "patch configmap settings --type=merge -p {\"data\":{\"a\":\"2\"}}",
        "configmap/settings patched\n",
    ),
    (
        "wait --for=jsonpath={.data.a}=2 configmap/settings --timeout=20s",
        "configmap/settings condition met\n",
    ),
    ("auth can-i create pods", "yes\n"),
    ("run p --image=busybox:1", "pod/p created\n"),
    (
        "get pods -l run=p -o jsonpath={.items[*].status.phase}",
        "Pending",
    ),
    (
        "api-resources --api-group=apps --no-headers -o name",
        "controllerrevisions.apps\ndaemonsets.apps\ndeployments.apps\nreplicasets.apps\nstatefulsets.apps\n",
    ),
    (
        "get pods --chunk-size=1 -o name --field-selector status.phase!=Running",
        "pod/p\n",
    ),
    (
        "rollout pause deployment/web",
        "deployment.apps/web paused\n",
    ),
];

/// What is asked, and a part of what is answered.
const PARTS: &[(&str, &str)] = &[
    ("describe deployment web", "busybox:2"),
    ("explain deployment.spec.strategy", "rollingUpdate"),
    ("get deployments", "READY   UP-TO-DATE   AVAILABLE"),
    (
        "delete deployment,service,configmap,pod --all --force",
        "deployment.apps \"web\" force deleted",
    ),
];

/// The fetched kubectl of a minor version.
fn fetched(minor: u32) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    match minor {
        37 => tools.join("kubectl"),
        older => tools.join(format!("kubectl-1.{older}")),
    }
}

async fn flow(minor: u32) -> Result<()> {
    let program = fetched(minor);
    if !program.is_file() {
        println!(
            "skipped: kubectl 1.{minor}: there is no {}: `cargo xtask setup` fetches it, or says why it cannot",
            program.display()
        );
        return Ok(());
    }
    let server = Server::start().await?.with_kubectl(program);
    let version = server.json(&["version"]).await?;
    let client = version["clientVersion"]["minor"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        client.trim_end_matches('+') == minor.to_string(),
        "it says {version}"
    );
    let manifest = server.manifest(WEB)?;
    let manifest = manifest.to_str().unwrap_or_default();
    let args = |line: &'static str| -> Vec<&str> {
        let word = |word: &'static str| if word == "MANIFEST" { manifest } else { word };
        line.split(' ').map(word).collect()
    };
    for (line, want) in FLOW {
        assert_eq!(
            server.kubectl(&args(line)).await?,
            *want,
            "1.{minor}: {line}"
        );
    }
    for (line, part) in PARTS {
        let said = server.kubectl(&args(line)).await?;
        assert!(
            said.contains(part),
            "1.{minor}: {line}: no {part:?} in {said}"
        );
    }
    Ok(())
}

macro_rules! versions {
    ($($name:ident $minor:literal),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() -> Result<()> {
            flow($minor).await
        }
    )*};
}

versions! {
    kubectl_1_28 28, kubectl_1_29 29, kubectl_1_30 30, kubectl_1_31 31, kubectl_1_32 32,
    kubectl_1_33 33, kubectl_1_34 34, kubectl_1_35 35, kubectl_1_36 36, kubectl_1_37 37,
}
