//! Custom resources: served at once, checked, defaulted, pruned, shown, scaled, in several versions, and gone.

use anyhow::{Context, Result};
use serde_json::json;
use tests_kubectl::{Server, columns};
use tokio::io::{AsyncBufReadExt, BufReader};

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
    additionalPrinterColumns:
    - {name: Size, type: string, jsonPath: .spec.size}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        description: A widget is a thing.
        required: [spec]
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: string, enum: [small, large], description: How large it is.}
              replicas: {type: integer, minimum: 0, maximum: 10, default: 1}
              note: {type: string, pattern: '^[a-z]*$'}
              parts:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, weight: {type: integer, default: 5}}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status:
            type: object
            properties:
              replicas: {type: integer}
              selector: {type: string}
              conditions: {type: array, items: {type: object, properties: {type: {type: string}, status: {type: string}}}}
  - name: v1beta1
    served: true
    storage: false
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

const WIDGET: &str = "
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
spec:
  size: small
  parts: [{name: a, weight: 5}]
  free: {anything: [1, {x: true}]}
";

async fn server() -> Result<Server> {
    let server = Server::start().await?;
    server.apply(WIDGETS).await?;
    server
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/widgets.example.com",
            "--timeout=5s",
        ])
        .await?;
    Ok(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_served_as_its_definition_says() -> Result<()> {
    let server = server().await?;
    assert_eq!(
        server.apply(WIDGET).await?,
        "widget.example.com/w created\n"
    );
    assert_eq!(
        server.apply(WIDGET).await?,
        "widget.example.com/w unchanged\n"
    );
    let widget = server.json(&["get", "wd", "w"]).await?;
    assert_eq!(
        widget["spec"],
        json!({"size": "small", "replicas": 1, "parts": [{"name": "a", "weight": 5}],
            "free": {"anything": [1, {"x": true}]}})
    );
    let status = r#"{"status":{"replicas":1,"selector":"app=w","conditions":[{"type":"Ready","status":"True"}]},"spec":{"size":"large"}}"#;
    server
        .kubectl(&[
            "patch",
            "widget",
            "w",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ])
        .await?;
    let table = server.kubectl(&["get", "widgets"]).await?;
    let shown = columns(&table);
    assert_eq!(shown[0], ["NAME", "SIZE", "REPLICAS", "READY", "AGE"]);
    assert_eq!(shown[1][..4], ["w", "small", "1", "True"]);
    server
        .kubectl(&["scale", "widget/w", "--replicas=4"])
        .await?;
    let widget = server.json(&["get", "widget", "w"]).await?;
    assert_eq!(
        (
            &widget["spec"]["replicas"],
            &widget["metadata"]["generation"]
        ),
        (&json!(4), &json!(2))
    );
    let changed = WIDGET.replace("weight: 5}]", "weight: 5}, {name: b}]");
    server
        .with_manifest(&["apply", "--server-side", "--force-conflicts"], &changed)
        .await?;
    let older = server
        .json(&["get", "widgets.v1beta1.example.com", "w"])
        .await?;
    assert_eq!(older["apiVersion"], "example.com/v1beta1");
    assert_eq!(
        older["spec"]["parts"],
        json!([{"name": "a", "weight": 5}, {"name": "b", "weight": 5}])
    );
    let all = server.kubectl(&["get", "all"]).await?;
    assert!(all.contains("widget.example.com/w"), "{all}");
    let explained = server.kubectl(&["explain", "widget.spec"]).await?;
    assert!(
        explained.contains("How large it is.") && explained.contains("-required-"),
        "{explained}"
    );
    let described = server.kubectl(&["describe", "widget", "w"]).await?;
    assert!(
        described.contains("API Version:  example.com/v1"),
        "{described}"
    );
    let resources = server
        .kubectl(&["api-resources", "--api-group=example.com"])
        .await?;
    assert!(
        resources.contains("wd") && resources.contains("Widget"),
        "{resources}"
    );
    let path = server.manifest(&changed.replace("small", "large"))?;
    let diff = server
        .command(&["diff", "-f", path.to_str().unwrap()])
        .output()
        .await?;
    assert!(String::from_utf8_lossy(&diff.stdout).contains("+  size: large"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_custom_resources_and_definitions_are_named() -> Result<()> {
    let server = server().await?;
    for (manifest, want) in [
        (
            WIDGET.replace("small", "tiny"),
            "spec.size: Unsupported value: \"tiny\": supported values: \"small\", \"large\"",
        ),
        (
            WIDGET.replace("size: small", "replicas: 1"),
            "spec.size: Required value",
        ),
        (
            WIDGET.replace("size: small", "size: small\n  replicas: 11"),
            "spec.replicas in body should be less than or equal to 10",
        ),
        (
            WIDGET.replace("size: small", "size: small\n  replicas: x"),
            "spec.replicas in body must be of type integer: \"x\"",
        ),
        (
            WIDGET.replace("size: small", "size: small\n  note: A1"),
            "spec.note in body should match '^[a-z]*$'",
        ),
        (
            WIDGET.replace("weight: 5}]", "weight: 5}, {name: a}]"),
            "spec.parts[1]: Duplicate value",
        ),
        (
            WIDGET.replace("size: small", "size: small\n  sise: x"),
            "unknown field \"spec.sise\"",
        ),
        (
            WIDGETS.replace("widgets.example.com", "gadgets.example.com"),
            "metadata.name: Invalid value: \"gadgets.example.com\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            WIDGETS.replace("storage: false", "storage: true"),
            "must have exactly one version marked as storage version",
        ),
        (
            WIDGETS.replace("note: {type: string, ", "note: {"),
            "properties[note].type: Required value: must not be empty for specified object fields",
        ),
        (
            WIDGETS.replace("pattern: '^[a-z]*$'", "pattern: '['"),
            "must be a valid regular expression",
        ),
        (
            WIDGETS.replace("scope: Namespaced", "scope: Cluster"),
            "spec.scope: Invalid value: \"Cluster\": field is immutable",
        ),
    ] {
        let path = server.manifest(&manifest)?;
        let said = server
            .refused(&["apply", "-f", path.to_str().unwrap()])
            .await?;
        assert!(said.contains(want), "wanted: {want}\nsaid: {said}");
    }
    // Without strict validation unknown fields are pruned.
    let path = server.manifest(&WIDGET.replace("size: small", "size: small\n  sise: x"))?;
    server
        .kubectl(&["create", "--validate=ignore", "-f", path.to_str().unwrap()])
        .await?;
    let widget = server.json(&["get", "widget", "w"]).await?;
    assert_eq!(widget["spec"].get("sise"), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_changes_and_goes_with_its_objects() -> Result<()> {
    let server = server().await?;
    server.apply(WIDGET).await?;
    let newer = WIDGETS.replace("[small, large]", "[small, large, huge]").replace(
        "  - name: v1beta1\n    served: true",
        "  - name: v2\n    served: true\n    storage: false\n    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}\n  - name: v1beta1\n    served: false",
    );
    server.apply(&newer).await?;
    server.apply(&WIDGET.replace("small", "huge")).await?;
    let v2 = server.json(&["get", "widgets.v2.example.com", "w"]).await?;
    assert_eq!(
        (&v2["apiVersion"], &v2["spec"]["size"]),
        (&json!("example.com/v2"), &json!("huge"))
    );
    let gone = server
        .refused(&["get", "--raw", "/apis/example.com/v1beta1/widgets"])
        .await?;
    assert!(gone.contains("NotFound"), "{gone}");
    let mut watch = server.spawn(&["get", "widgets", "-w", "-o", "name"])?;
    let stdout = watch.stdout.take().context("it has an output")?;
    let patience = std::time::Duration::from_secs(20);
    // Once it has shown what there is, it watches.
    let mut shown = BufReader::new(stdout).lines();
    let first = tokio::time::timeout(patience, shown.next_line()).await??;
    assert_eq!(first.as_deref(), Some("widget.example.com/w"));
    server
        .kubectl(&["delete", "crd", "widgets.example.com", "--timeout=20s"])
        .await?;
    tokio::time::timeout(patience, watch.wait()).await??;
    let gone = server
        .refused(&["get", "--raw", "/apis/example.com/v1/widgets"])
        .await?;
    assert!(gone.contains("NotFound"), "{gone}");
    // The same name can be defined again, without the old objects.
    server.apply(WIDGETS).await?;
    // kubectl remembers the version that is gone.
    let left = server.kubectl(&["get", "widgets.v1.example.com", "-o", "name"]);
    assert_eq!(left.await?, "");
    Ok(())
}
