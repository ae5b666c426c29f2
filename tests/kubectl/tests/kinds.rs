//! Every kind: made from a manifest, shown as a table, described, explained, refused with its faults named.

use anyhow::Result;
use tests_kubectl::{Server, columns};

const WORKLOADS: &str = include_str!("manifests/workloads.yaml");
const CLUSTER: &str = include_str!("manifests/cluster.yaml");

/// What is got, and the row (without ages) that is shown.
const ROWS: &[(&str, &str, &str)] = &[
    (
        "deployments",
        "NAME READY UP-TO-DATE AVAILABLE",
        "web 0/2 0 0",
    ),
    ("replicasets", "NAME DESIRED CURRENT READY", "rs 1 0 0"),
    (
        "replicationcontrollers",
        "NAME DESIRED CURRENT READY",
        "rc 1 0 0",
    ),
    ("statefulsets", "NAME READY", "db 0/1"),
    (
        "daemonsets",
        "NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE-SELECTOR",
        "agent 0 0 0 0 0 disk=ssd",
    ),
    (
        "controllerrevisions",
        "NAME CONTROLLER REVISION",
        "db-1 <none> 3",
    ),
    (
        "podtemplates",
        "NAME CONTAINERS IMAGES POD-LABELS",
        "pt c busybox:1 app=pt",
    ),
    ("jobs", "NAME STATUS COMPLETIONS", "once Running 0/1"),
    (
        "cronjobs",
        "NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST-SCHEDULE",
        "hourly 0_*_*_*_* <none> False 0 <none>",
    ),
    (
        "hpa",
        "NAME REFERENCE TARGETS MINPODS MAXPODS REPLICAS",
        "web Deployment/web cpu:_<unknown>/50% 1 5 0",
    ),
    (
        "hpa.v1.autoscaling",
        "NAME REFERENCE TARGETS MINPODS MAXPODS REPLICAS",
        "web Deployment/web cpu:_<unknown>/50% 1 5 0",
    ),
    (
        "pdb",
        "NAME MIN-AVAILABLE MAX-UNAVAILABLE ALLOWED-DISRUPTIONS",
        "web 1 N/A 0",
    ),
    (
        "pvc",
        "NAME STATUS VOLUME CAPACITY ACCESS-MODES STORAGECLASS VOLUMEATTRIBUTESCLASS",
        "data Pending . . . fast <unset>",
    ),
    ("quota", "NAME REQUEST LIMIT", "q . ."),
    ("limitranges", "NAME", "limits"),
    (
        "ingresses",
        "NAME CLASS HOSTS ADDRESS PORTS",
        "web nginx a.example . 80",
    ),
    ("networkpolicies", "NAME POD-SELECTOR", "np app=web"),
    ("roles", "NAME", "reader"),
    ("rolebindings", "NAME ROLE", "readers Role/reader"),
    (
        "csistoragecapacities",
        "NAME STORAGECLASS CAPACITY",
        "cap fast 10Gi",
    ),
    (
        "pv",
        "NAME CAPACITY ACCESS-MODES RECLAIM-POLICY STATUS CLAIM STORAGECLASS VOLUMEATTRIBUTESCLASS",
        "pv1 1Gi RWO Retain Pending . fast <unset>",
    ),
    (
        "storageclasses",
        "NAME PROVISIONER RECLAIMPOLICY VOLUMEBINDINGMODE ALLOWVOLUMEEXPANSION",
        "fast_(default) example.com/disk Delete Immediate true",
    ),
    (
        "csidrivers",
        "NAME ATTACHREQUIRED PODINFOONMOUNT STORAGECAPACITY TOKENREQUESTS REQUIRESREPUBLISH MODES",
        "disk.example.com true false false <unset> false Persistent",
    ),
    ("csinodes", "NAME DRIVERS", "n1 0"),
    (
        "volumeattachments",
        "NAME ATTACHER PV NODE ATTACHED",
        "va1 disk.example.com pv1 n1 false",
    ),
    (
        "volumeattributesclasses",
        "NAME DRIVERNAME",
        "gold disk.example.com",
    ),
    (
        "ingressclasses",
        "NAME CONTROLLER PARAMETERS",
        "nginx example.com/ingress <none>",
    ),
    (
        "ipaddresses",
        "NAME PARENTREF",
        "10.96.0.200 services/default/web",
    ),
    ("servicecidrs", "NAME CIDRS", "more 10.97.0.0/16"),
    ("clusterroles", "NAME", "viewer"),
    (
        "clusterrolebindings",
        "NAME ROLE",
        "viewers ClusterRole/viewer",
    ),
    (
        "priorityclasses",
        "NAME VALUE GLOBAL-DEFAULT PREEMPTIONPOLICY",
        "high 1000 false PreemptLowerPriority",
    ),
    ("runtimeclasses", "NAME HANDLER", "gvisor runsc"),
    (
        "flowschemas",
        "NAME PRIORITYLEVEL MATCHINGPRECEDENCE DISTINGUISHERMETHOD",
        "fs low 1000 <none>",
    ),
    (
        "prioritylevelconfigurations",
        "NAME TYPE NOMINALCONCURRENCYSHARES QUEUES HANDSIZE QUEUELENGTHLIMIT",
        "low Limited 30 <none> <none> <none>",
    ),
    ("validatingwebhookconfigurations", "NAME WEBHOOKS", "vw 1"),
    ("mutatingwebhookconfigurations", "NAME WEBHOOKS", "mw 1"),
    (
        "validatingadmissionpolicies",
        "NAME VALIDATIONS PARAMKIND",
        "vap 1 <unset>",
    ),
    (
        "validatingadmissionpolicybindings",
        "NAME POLICYNAME PARAMREF",
        "vapb vap <unset>",
    ),
    (
        "apiservices",
        "NAME SERVICE AVAILABLE",
        "v1.metrics.example.com default/metrics Unknown",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_kept_shown_and_described() -> Result<()> {
    let server = Server::start().await?;
    for manifest in [WORKLOADS, CLUSTER] {
        let made = server.apply(manifest).await?;
        assert!(
            made.lines().all(|line| line.ends_with(" created")),
            "{made}"
        );
        let again = server.apply(manifest).await?;
        // kubectl always sends the selector of a budget, whose patch strategy is replace.
        let same = |line: &str| line.ends_with(" unchanged") || line.contains("budget");
        assert!(again.lines().all(same), "{again}");
    }
    for (kind, head, row) in ROWS {
        let table = server.kubectl(&["get", kind]).await?;
        let count = head.split(' ').count();
        let shown = columns(&table);
        let line = |at: usize| shown[at][..count].join(" ");
        assert_eq!(line(0), *head, "{kind}");
        assert!(
            (1..shown.len()).any(|at| line(at) == *row),
            "{kind}: no {row:?} in {table}"
        );
        let described = server.kubectl(&["describe", kind]).await?;
        let name = row.split([' ', '_']).next().unwrap_or_default();
        assert!(
            described.contains(&format!("{name}\n")),
            "{kind}: {described}"
        );
    }
    let all = server.kubectl(&["get", "all"]).await?;
    for name in [
        "deployment.apps/web",
        "job.batch/once",
        "horizontalpodautoscaler.autoscaling/web",
        "replicationcontroller/rc",
    ] {
        assert!(all.contains(name), "no {name} in {all}");
    }
    let gone = server.with_manifest(&["delete"], WORKLOADS).await?;
    assert!(gone.lines().all(|line| line.contains(" deleted")), "{gone}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_has_its_defaults_and_its_scale() -> Result<()> {
    let server = Server::start().await?;
    server.apply(WORKLOADS).await?;
    let deployment = server.json(&["get", "deployment", "web"]).await?;
    let spec = &deployment["spec"];
    assert_eq!(spec["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(
        spec["template"]["spec"]["containers"][0]["imagePullPolicy"],
        "IfNotPresent"
    );
    assert_eq!(spec["template"]["spec"].get("serviceAccountName"), None);
    assert_eq!(deployment["metadata"]["generation"], 1);
    let scaled = server
        .kubectl(&["scale", "deployment/web", "--replicas=5"])
        .await?;
    assert_eq!(scaled, "deployment.apps/web scaled\n");
    let wrong = server
        .refused(&[
            "scale",
            "deployment/web",
            "--current-replicas=2",
            "--replicas=1",
        ])
        .await?;
    assert!(
        wrong.contains("Expected replicas to be 2, was 5"),
        "{wrong}"
    );
    server
        .kubectl(&[
            "scale",
            "deployment/web",
            "--current-replicas=5",
            "--replicas=3",
        ])
        .await?;
    let table = server
        .kubectl(&["get", "deployment", "web", "--subresource=scale"])
        .await?;
    assert_eq!(columns(&table)[1][..3], ["web", "3", "0"]);
    let deployment = server.json(&["get", "deployment", "web"]).await?;
    assert_eq!(deployment["metadata"]["generation"], 3);
    let status = r#"{"status":{"readyReplicas":3,"replicas":3,"updatedReplicas":3,"availableReplicas":3,"observedGeneration":3}}"#;
    server
        .kubectl(&[
            "patch",
            "deployment",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ])
        .await?;
    let rolled = server
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=10s"])
        .await?;
    assert_eq!(rolled, "deployment \"web\" successfully rolled out\n");
    server
        .kubectl(&["set", "image", "deployment/web", "c=busybox:2"])
        .await?;
    server
        .kubectl(&["set", "env", "deployment/web", "A=1"])
        .await?;
    server
        .kubectl(&["rollout", "pause", "deployment/web"])
        .await?;
    server
        .kubectl(&["rollout", "resume", "deployment/web"])
        .await?;
    server
        .kubectl(&["rollout", "restart", "deployment/web"])
        .await?;
    let deployment = server.json(&["get", "deployment", "web"]).await?;
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (
            container["image"].as_str(),
            container["env"][0]["value"].as_str()
        ),
        (Some("busybox:2"), Some("1"))
    );
    assert_eq!(deployment["spec"].get("paused"), None);
    assert!(deployment["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string());
    let exposed = server
        .kubectl(&["expose", "deployment/web", "--port=80"])
        .await?;
    assert_eq!(exposed, "service/web exposed\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_workloads_are_named() -> Result<()> {
    let server = Server::start().await?;
    server.apply(WORKLOADS).await?;
    for (kind, name, patch, want) in [
        (
            "deployment",
            "web",
            r#"{"spec":{"selector":{"matchLabels":{"app":"x"}},"template":{"metadata":{"labels":{"app":"x"}}}}}"#,
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable",
        ),
        (
            "deployment",
            "web",
            r#"{"spec":{"replicas":-1}}"#,
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "job",
            "once",
            r#"{"spec":{"completions":5}}"#,
            "spec.completions: Invalid value: 5: field is immutable",
        ),
        (
            "cronjob",
            "hourly",
            r#"{"spec":{"schedule":"x"}}"#,
            "spec.schedule: Invalid value: \"x\": expected exactly 5 fields, found 1: [x]",
        ),
        (
            "hpa",
            "web",
            r#"{"spec":{"maxReplicas":0}}"#,
            "spec.maxReplicas: Invalid value: 0: must be greater than 0",
        ),
        (
            "statefulset",
            "db",
            r#"{"spec":{"serviceName":"x"}}"#,
            "updates to statefulset spec for fields other than",
        ),
        (
            "rolebinding",
            "readers",
            r#"{"roleRef":{"name":"other"}}"#,
            "cannot change roleRef",
        ),
        (
            "ingress",
            "web",
            r#"{"spec":{"rules":null}}"#,
            "either `defaultBackend` or `rules` must be specified",
        ),
        (
            "pvc",
            "data",
            r#"{"spec":{"storageClassName":"slow"}}"#,
            "spec is immutable after creation except",
        ),
    ] {
        let refused = server
            .refused(&["patch", kind, name, "--type=merge", "-p", patch])
            .await?;
        assert!(refused.contains(want), "{kind}: {refused}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_spends_the_budget() -> Result<()> {
    let server = Server::start().await?;
    server.apply(WORKLOADS).await?;
    server
        .apply("{apiVersion: v1, kind: Node, metadata: {name: n1}}")
        .await?;
    server
        .apply("{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {app: web}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: x, controller: true}]}, spec: {nodeName: n1, containers: [{name: c, image: i}]}}")
        .await?;
    let running =
        r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    server
        .kubectl(&[
            "patch",
            "pod",
            "p",
            "--subresource=status",
            "--type=merge",
            "-p",
            running,
        ])
        .await?;
    let uid = server.json(&["get", "rs", "rs"]).await?["metadata"]["uid"].clone();
    let owner =
        format!(r#"[{{"op":"replace","path":"/metadata/ownerReferences/0/uid","value":{uid}}}]"#);
    server
        .kubectl(&["patch", "pod", "p", "--type=json", "-p", &owner])
        .await?;
    let kept = server.refused(&["drain", "n1", "--timeout=3s"]).await?;
    assert!(
        kept.contains("Cannot evict pod as it would violate the pod's disruption budget"),
        "{kept}"
    );
    let leave = r#"{"status":{"disruptionsAllowed":1,"observedGeneration":1,"desiredHealthy":1,"currentHealthy":2}}"#;
    server
        .kubectl(&[
            "patch",
            "pdb",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            leave,
        ])
        .await?;
    let drain = server.spawn(&["drain", "n1", "--timeout=20s"])?;
    server
        .kubectl(&[
            "wait",
            "--for=jsonpath={.metadata.deletionGracePeriodSeconds}=30",
            "pod/p",
            "--timeout=10s",
        ])
        .await?;
    server
        .kubectl(&[
            "delete",
            "pod",
            "p",
            "--grace-period=0",
            "--force",
            "--wait=false",
        ])
        .await?;
    let drained = drain.wait_with_output().await?;
    assert!(
        drained.status.success(),
        "{}",
        String::from_utf8_lossy(&drained.stderr)
    );
    let budget = server.json(&["get", "pdb", "web"]).await?;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
    Ok(())
}
