//! The manifests of deploy/, by the real kubectl.

use anyhow::{Result, ensure};
use tests_kubectl::Server;

/// What `kubectl apply -k` is given.
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
const AGENT: &str = "daemonset/fairlead-node-agent";

#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_are_applied_changed_and_deleted() -> Result<()> {
    let server = Server::start().await?;
    let made = server.kubectl(&["apply", "-k", DEPLOY]).await?;
    ensure!(made.lines().count() == 7, "{made}");
    ensure!(
        made.lines().all(|line| line.ends_with(" created")),
        "{made}"
    );
    let again = server.kubectl(&["apply", "-k", DEPLOY]).await?;
    ensure!(
        again.lines().all(|line| line.ends_with(" unchanged")),
        "{again}"
    );

    // The agent's own permissions, and nobody else's.
    let role = server
        .kubectl(&["describe", "clusterrole", "fairlead-node-agent"])
        .await?;
    ensure!(role.contains("nodes/status"), "{role}");
    let spec = server.json(&["get", AGENT, "-n", "kube-system"]).await?;
    let pod = &spec["spec"]["template"]["spec"];
    let account = server
        .json(&["get", "rolebinding", "fairlead-node-agent", "-n", "default"])
        .await?;
    ensure!(
        account["subjects"][0]["name"] == pod["serviceAccountName"],
        "{account}"
    );
    ensure!(
        pod["hostNetwork"] == true && pod["hostPID"] == true,
        "{pod}"
    );

    let image = "fairlead-node-agent=registry.example/fairlead/node-agent:0.2.0";
    server
        .kubectl(&["set", "image", AGENT, image, "-n", "kube-system"])
        .await?;
    let images = [
        "get",
        AGENT,
        "-n",
        "kube-system",
        "-o",
        "jsonpath={.spec.template.spec.containers[*].image}",
    ];
    ensure!(server.kubectl(&images).await?.ends_with(":0.2.0"));

    let gone = server.kubectl(&["delete", "-k", DEPLOY]).await?;
    ensure!(gone.lines().count() == 7, "{gone}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_proxy_is_stopped_by_a_node_selector_and_started_again() -> Result<()> {
    let server = Server::start().await?;
    server.apply(KUBE_PROXY).await?;
    let patch = r#"{"spec":{"template":{"spec":{"nodeSelector":{"fairlead/kube-proxy":"on"}}}}}"#;
    let page = include_str!("../../../docs/replace-kube-proxy.md");
    ensure!(
        page.contains(patch) && page.contains(BACK),
        "the page says what is tried here"
    );
    let kube_proxy = ["-n", "kube-system", "daemonset", "kube-proxy"];
    server
        .kubectl(&[&["patch"], &kube_proxy[..], &["-p", patch]].concat())
        .await?;
    let selector = async || -> Result<String> {
        let path = ["-o", "jsonpath={.spec.template.spec.nodeSelector}"];
        server
            .kubectl(&[&["get"], &kube_proxy[..], &path].concat())
            .await
    };
    ensure!(selector().await?.contains("fairlead/kube-proxy"));
    server
        .kubectl(&[&["patch"], &kube_proxy[..], &["--type=json", "-p", BACK]].concat())
        .await?;
    ensure!(selector().await? == r#"{"kubernetes.io/os":"linux"}"#);
    Ok(())
}

const BACK: &str =
    r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/fairlead~1kube-proxy"}]"#;

/// In short what kubeadm makes.
const KUBE_PROXY: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-proxy}}
  template:
    metadata: {labels: {k8s-app: kube-proxy}}
    spec:
      nodeSelector: {kubernetes.io/os: linux}
      containers:
        - {name: kube-proxy, image: "registry.k8s.io/kube-proxy:v1.37.0"}
"#;
