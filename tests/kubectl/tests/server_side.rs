//! Server-side apply with kubectl: who owns what, conflicts, and going over from client-side apply.

use anyhow::Result;
use serde_json::{Value, json};
use tests_kubectl::Server;

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: busybox:1
        ports: [{containerPort: 80}]
        env: [{name: A, value: \"1\"}]
";

fn managers(object: &Value) -> Vec<(String, String)> {
    let all = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    all.map(|e| (text(&e["manager"]), text(&e["operation"])))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_have_owners_and_conflicts_are_named() -> Result<()> {
    let server = Server::start().await?;
    let apply = ["apply", "--server-side"];
    let made = server.with_manifest(&apply, WEB).await?;
    assert_eq!(made, "deployment.apps/web serverside-applied\n");
    let get = ["get", "deployment", "web", "--show-managed-fields"];
    let first = server.json(&get).await?;
    assert_eq!(
        managers(&first),
        [("kubectl".to_owned(), "Apply".to_owned())]
    );
    server.with_manifest(&apply, WEB).await?;
    let again = server.json(&get).await?;
    assert_eq!(
        again["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    // Somebody scales: that field is theirs.
    server
        .kubectl(&[
            "patch",
            "deployment",
            "web",
            "--type=merge",
            "-p",
            r#"{"spec":{"replicas":5}}"#,
        ])
        .await?;
    let three = server.manifest(&WEB.replace("replicas: 2", "replicas: 3"))?;
    let three = three.to_str().unwrap();
    let refused = server
        .refused(&["apply", "--server-side", "-f", three])
        .await?;
    assert!(
        refused.contains("Apply failed with 1 conflict: conflict with \"kubectl-patch\" using apps/v1: .spec.replicas"),
        "{refused}"
    );
    server
        .kubectl(&["apply", "--server-side", "--force-conflicts", "-f", three])
        .await?;
    let forced = server.json(&get).await?;
    assert_eq!(forced["spec"]["replicas"], 3);
    // Two appliers share one container: each keeps what it says.
    let other = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {template: {spec: {containers: [{name: c, env: [{name: B, value: '2'}]}]}}}}";
    server
        .with_manifest(&["apply", "--server-side", "--field-manager=other"], other)
        .await?;
    let less = WEB
        .replace("        env: [{name: A, value: \"1\"}]\n", "")
        .replace("replicas: 2", "replicas: 3");
    server.with_manifest(&apply, &less).await?;
    let shared = server.json(&get).await?;
    let container = &shared["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["env"], json!([{"name": "B", "value": "2"}]));
    assert_eq!(container["ports"][0]["containerPort"], 80);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn client_side_apply_goes_over_to_server_side() -> Result<()> {
    let server = Server::start().await?;
    server.apply(WEB).await?;
    let get = ["get", "deployment", "web", "--show-managed-fields"];
    let before = server.json(&get).await?;
    assert_eq!(
        managers(&before),
        [("kubectl-client-side-apply".to_owned(), "Update".to_owned())]
    );
    let changed = WEB.replace("busybox:1", "busybox:2");
    server
        .with_manifest(&["apply", "--server-side"], &changed)
        .await?;
    let after = server.json(&get).await?;
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"][0]["image"],
        "busybox:2"
    );
    assert_eq!(
        managers(&after)[0],
        ("kubectl".to_owned(), "Apply".to_owned())
    );
    // What the manifest drops goes, as it does with client-side apply.
    let less = changed.replace("        env: [{name: A, value: \"1\"}]\n", "");
    server
        .with_manifest(&["apply", "--server-side"], &less)
        .await?;
    let after = server.json(&get).await?;
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"][0].get("env"),
        None
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_shows_what_would_change_and_changes_nothing() -> Result<()> {
    let server = Server::start().await?;
    server.apply(WEB).await?;
    let path = server.manifest(&WEB.replace("busybox:1", "busybox:2"))?;
    for more in [&[][..], &["--server-side", "--force-conflicts"]] {
        let args: Vec<&str> = ["diff", "-f", path.to_str().unwrap()]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let output = server.command(&args).output().await?;
        let said = String::from_utf8(output.stdout)?;
        assert_eq!(
            output.status.code(),
            Some(1),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            said.contains("-      - image: busybox:1")
                || said.contains("-        image: busybox:1"),
            "{said}"
        );
        assert!(said.contains("image: busybox:2"), "{said}");
    }
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(
        server
            .kubectl(&["get", "deployment", "web", "-o", image])
            .await?,
        "busybox:1"
    );
    let new = server.manifest(&WEB.replace("name: web, labels", "name: new, labels"))?;
    let output = server
        .command(&["diff", "-f", new.to_str().unwrap()])
        .output()
        .await?;
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}
