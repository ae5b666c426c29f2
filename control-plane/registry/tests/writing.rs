//! Writes as clients see them: versions, parts kept apart, finalizers, grace, namespaces that end, pages, dry runs.

mod common;

use common::{Cluster, body, config_map, kind, pod};
use control_plane_registry::decode::Body;
use control_plane_registry::{
    DeleteOptions, Deleted, FieldValidation, ListOptions, Options, PatchType, Subresource,
    WriteOptions,
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_an_old_version_conflicts_and_one_without_version_does_not() {
    let cluster = Cluster::new().await;
    let old = cluster
        .create("configmaps", config_map("m", "1"))
        .await
        .unwrap();
    let mut new = old.clone();
    new["data"]["v"] = json!("2");
    let updated = cluster
        .update("configmaps", None, new.clone())
        .await
        .unwrap();
    assert_ne!(
        updated["metadata"]["resourceVersion"],
        old["metadata"]["resourceVersion"]
    );
    assert_eq!(updated["metadata"]["uid"], old["metadata"]["uid"]);
    new["data"]["v"] = json!("3");
    let error = cluster.update("configmaps", None, new).await.unwrap_err();
    assert_eq!(
        error.message,
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again"
    );
    cluster
        .update("configmaps", None, config_map("m", "4"))
        .await
        .unwrap();
    // What changes nothing makes no new version.
    let before = cluster.get("configmaps", "m").await.unwrap();
    let after = cluster
        .update("configmaps", None, before.clone())
        .await
        .unwrap();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_all_arrive() {
    let cluster = Cluster::new().await;
    cluster
        .create("configmaps", config_map("m", ""))
        .await
        .unwrap();
    let patches = (0..6).map(|n| {
        let key = format!("k{n}");
        cluster.patch("configmaps", "m", json!({"data": {key: "x"}}))
    });
    for outcome in futures::future::join_all(patches).await {
        outcome.unwrap();
    }
    let all = cluster.get("configmaps", "m").await.unwrap();
    assert_eq!(all["data"].as_object().unwrap().len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_specification_are_written_apart() {
    let cluster = Cluster::new().await;
    let mut wish = pod("p");
    wish["status"] = json!({"phase": "Running"});
    let made = cluster.create("pods", wish).await.unwrap();
    assert_eq!(
        made["status"],
        json!({"phase": "Pending", "qosClass": "BestEffort"})
    );
    assert_eq!(made["metadata"]["generation"], 1);
    let mut both = made.clone();
    both["spec"]["containers"][0]["image"] = json!("busybox:2");
    both["status"]["phase"] = json!("Running");
    let status = cluster
        .update("pods", Some(Subresource::Status), both.clone())
        .await
        .unwrap();
    assert_eq!(status["status"]["phase"], "Running");
    assert_eq!(status["spec"], made["spec"]);
    assert_eq!(status["metadata"]["generation"], 1);
    both["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    both["status"]["phase"] = json!("Failed");
    let main = cluster.update("pods", None, both).await.unwrap();
    assert_eq!(main["status"]["phase"], "Running");
    assert_eq!(main["spec"]["containers"][0]["image"], "busybox:2");
    assert_eq!(main["metadata"]["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_pod_is_deleted_in_two_steps() {
    let cluster = Cluster::new().await;
    cluster.create("pods", pod("p")).await.unwrap();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    cluster
        .registry
        .bind(kind("pods"), "default", "p", &binding, false)
        .await
        .unwrap();
    let Deleted::Object(marked) = cluster.delete("pods", "p").await.unwrap() else {
        panic!("pods answer with the pod");
    };
    assert_eq!(marked.value()["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(
        cluster.get("pods", "p").await.unwrap()["spec"]["nodeName"],
        "n1"
    );
    let at_once = DeleteOptions {
        grace_period_seconds: Some(0),
        ..DeleteOptions::default()
    };
    cluster.delete_with("pods", "p", at_once).await.unwrap();
    assert_eq!(
        cluster.get("pods", "p").await.unwrap_err().message,
        "pods \"p\" not found"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_finalizer_takes_the_object_with_it() {
    let cluster = Cluster::new().await;
    let mut wish = config_map("m", "1");
    wish["metadata"]["finalizers"] = json!(["example.com/a"]);
    cluster.create("configmaps", wish).await.unwrap();
    assert!(matches!(
        cluster.delete("configmaps", "m").await.unwrap(),
        Deleted::Object(_)
    ));
    let waiting = cluster.get("configmaps", "m").await.unwrap();
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/a"]}});
    cluster.patch("configmaps", "m", patch).await.unwrap();
    assert_eq!(cluster.get("configmaps", "m").await.unwrap_err().code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_are_kept() {
    let cluster = Cluster::new().await;
    cluster
        .create("configmaps", config_map("d1", "1"))
        .await
        .unwrap();
    let options = DeleteOptions {
        uid: Some("bad".into()),
        ..DeleteOptions::default()
    };
    let error = cluster
        .delete_with("configmaps", "d1", options)
        .await
        .unwrap_err();
    assert_eq!(error.code, 409);
    let want = "Operation cannot be fulfilled on ConfigMap \"d1\": the UID in the precondition (bad) does not match the UID in record (";
    assert!(error.message.starts_with(want), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_ends_takes_no_new_objects_and_goes_when_it_is_finalized() {
    let cluster = Cluster::new().await;
    let made = cluster
        .create("namespaces", json!({"metadata": {"name": "x"}}))
        .await
        .unwrap();
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(
        made["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "x"
    );
    cluster.delete("namespaces", "x").await.unwrap();
    let mut ending = cluster.get("namespaces", "x").await.unwrap();
    assert_eq!(ending["status"]["phase"], "Terminating");
    let options = WriteOptions::default();
    let wish = body(config_map("m", ""));
    let create = cluster
        .registry
        .create(kind("configmaps"), "x", wish, &options);
    let error = create.await.unwrap_err();
    assert_eq!(
        error.message,
        "configmaps \"m\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    ending["spec"]["finalizers"] = json!([]);
    cluster
        .update("namespaces", Some(Subresource::Finalize), ending)
        .await
        .unwrap();
    assert_eq!(cluster.get("namespaces", "x").await.unwrap_err().code, 404);
    let error = cluster.delete("namespaces", "default").await.unwrap_err();
    assert_eq!(error.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_one_state_although_it_changes_meanwhile() {
    let cluster = Cluster::new().await;
    for n in 0..5 {
        cluster
            .create("configmaps", config_map(&format!("m{n}"), ""))
            .await
            .unwrap();
    }
    let mut options = ListOptions {
        limit: 2,
        ..ListOptions::default()
    };
    let mut names = Vec::new();
    let mut remaining = Vec::new();
    loop {
        let page = cluster
            .registry
            .list(kind("configmaps"), "default", &options)
            .await
            .unwrap();
        names.extend(page.items.iter().map(|o| o.name.clone()));
        remaining.push(page.remaining);
        cluster.delete("configmaps", "m4").await.ok();
        cluster
            .create("configmaps", config_map("m00", ""))
            .await
            .ok();
        match page.continue_token {
            Some(token) => options.continue_token = token,
            None => break,
        }
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"].map(Box::from));
    assert_eq!(remaining, [Some(3), Some(1), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_be_and_stores_nothing() {
    let cluster = Cluster::new().await;
    let options = WriteOptions {
        dry_run: true,
        ..WriteOptions::default()
    };
    let wish = body(common::service("s", "NodePort"));
    let written = cluster
        .registry
        .create(kind("services"), "default", wish, &options)
        .await
        .unwrap();
    let value = written.object.value();
    assert!(value["spec"]["clusterIP"].is_string());
    assert_eq!(value["metadata"].get("resourceVersion"), None);
    assert_eq!(cluster.get("services", "s").await.unwrap_err().code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_patches_refuse_unknown_fields_and_others_drop_them_with_a_word() {
    let cluster = Cluster::new().await;
    cluster
        .create("configmaps", config_map("m", "1"))
        .await
        .unwrap();
    let patch = |validation| {
        let options = WriteOptions {
            field_validation: validation,
            ..WriteOptions::default()
        };
        let patch = Body {
            value: json!({"dataa": {"x": "1"}}),
            found: Vec::new(),
        };
        let registry = cluster.registry.clone();
        async move {
            registry
                .patch(
                    kind("configmaps"),
                    None,
                    "default",
                    "m",
                    &patch,
                    PatchType::Merge,
                    &options,
                )
                .await
        }
    };
    let error = patch(FieldValidation::Strict).await.unwrap_err();
    assert_eq!(error.code, 422);
    assert!(
        error
            .message
            .contains("strict decoding error: unknown field \"dataa\""),
        "{error}"
    );
    let written = patch(FieldValidation::Warn).await.unwrap();
    assert_eq!(written.warnings, ["unknown field \"dataa\""]);
    assert_eq!(written.object.value().get("dataa"), None);
    assert!(
        patch(FieldValidation::Ignore)
            .await
            .unwrap()
            .warnings
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_names_differ_and_missing_namespaces_are_named() {
    let cluster = Cluster::new().await;
    let wish = json!({"metadata": {"generateName": "job-"}});
    let one = cluster.create("configmaps", wish.clone()).await.unwrap();
    let two = cluster.create("configmaps", wish.clone()).await.unwrap();
    let name = |v: &Value| v["metadata"]["name"].as_str().unwrap().to_owned();
    assert_ne!(name(&one), name(&two));
    assert!(name(&one).starts_with("job-") && name(&one).len() == 9);
    let options = WriteOptions::default();
    let create = cluster
        .registry
        .create(kind("configmaps"), "nope", body(wish), &options);
    assert_eq!(
        create.await.unwrap_err().message,
        "namespaces \"nope\" not found"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_tells_how_often_its_template_has_changed() {
    const NAME: &str = "deprecated.daemonset.template.generation";
    let wish = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {
                "metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "c", "image": "busybox:1"}]},
            },
        }})
    };
    let told = |set: &Value| set["metadata"]["annotations"][NAME].clone();
    let cluster = Cluster::new().await;
    let made = cluster.create("daemonsets", wish("d")).await.unwrap();
    assert_eq!(told(&made), "1");
    // A part of the specification that is not the template, and the status, change nothing.
    let patched = cluster.patch("daemonsets", "d", json!({"spec": {"minReadySeconds": 3}}));
    let patched = patched.await.unwrap();
    assert_eq!(told(&patched), "1");
    assert_eq!(patched["metadata"]["generation"], 2);
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "busybox:2"}]}}}});
    let changed = cluster.patch("daemonsets", "d", image).await.unwrap();
    assert_eq!(told(&changed), "2");
    let mut status = changed.clone();
    status["metadata"]["annotations"] = json!({"mine": "x"});
    status["status"]["observedGeneration"] = json!(3);
    let reported = cluster
        .update("daemonsets", Some(Subresource::Status), status)
        .await
        .unwrap();
    assert_eq!(told(&reported), "2");
    // Who replaces it from a manifest counts on.
    let replaced = cluster.update("daemonsets", None, wish("d")).await.unwrap();
    assert_eq!(told(&replaced), "3");
    let told_otherwise = json!({"metadata": {"annotations": {NAME: "9"}}});
    let patched = cluster.patch("daemonsets", "d", told_otherwise).await;
    assert_eq!(told(&patched.unwrap()), "3");

    for (given, begins) in [("7", "7"), ("-1", "1")] {
        let mut moved = wish(&format!("from-{begins}"));
        moved["metadata"]["annotations"] = json!({NAME: given});
        assert_eq!(
            told(&cluster.create("daemonsets", moved).await.unwrap()),
            begins
        );
    }
    let mut wrong = wish("wrong");
    wrong["metadata"]["annotations"] = json!({NAME: "x"});
    let error = cluster.create("daemonsets", wrong).await.unwrap_err();
    assert_eq!(
        error.message,
        "DaemonSet.apps \"wrong\" is invalid: metadata.annotations[deprecated.daemonset.template.generation]: Invalid value: \"x\": must be a number"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_a_template_does_not_own_how_often_it_has_changed() {
    let cluster = Cluster::new().await;
    let by = |manager: &str| WriteOptions {
        manager: manager.to_owned(),
        ..WriteOptions::default()
    };
    let containers = |image: &str| json!([{"name": "c", "image": image}]);
    let wish = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "a"}},
        "template": {
            "metadata": {"labels": {"app": "a"}},
            "spec": {"containers": containers("busybox:1")},
        },
    }});
    let (registry, sets, first) = (&cluster.registry, kind("daemonsets"), by("first"));
    let made = registry.create(sets, "default", body(wish), &first);
    made.await.unwrap();
    let image = json!({"spec": {"template": {"spec": {"containers": containers("busybox:2")}}}});
    let (patch, strategic, options) = (body(image), PatchType::Strategic, by("second"));
    let changed = registry.patch(sets, None, "default", "d", &patch, strategic, &options);
    let changed = changed.await.unwrap().object.value();
    let owners = changed["metadata"]["managedFields"].as_array().unwrap();
    let owns = |manager: &str| {
        let entry = owners.iter().find(|entry| entry["manager"] == manager);
        let annotations = &entry.unwrap()["fieldsV1"]["f:metadata"]["f:annotations"];
        annotations["f:deprecated.daemonset.template.generation"].is_object()
    };
    assert!(owns("first") && !owns("second"), "{owners:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_groups_are_there_and_come_back_when_it_starts() {
    let available = |service: &Value| {
        let condition = &service["status"]["conditions"][0];
        ["type", "status", "reason"].map(|field| condition[field].clone())
    };
    let cluster = Cluster::new().await;
    let core = cluster.get("apiservices", "v1.").await.unwrap();
    assert_eq!(core["spec"]["groupPriorityMinimum"], 18000);
    assert_eq!(available(&core), ["Available", "True", "Local"]);
    assert_eq!(
        core["metadata"]["labels"],
        json!({"kube-aggregator.kubernetes.io/automanaged": "onstart"})
    );
    cluster.delete("apiservices", "v1.apps").await.unwrap();
    let cluster = cluster.restart(Options::default()).await;
    let back = cluster.get("apiservices", "v1.apps").await.unwrap();
    assert_eq!(available(&back), ["Available", "True", "Local"]);
    assert_eq!(cluster.get("apiservices", "v1.").await.unwrap(), core);
    // What somebody else serves is not known to be there.
    let metrics = json!({"metadata": {"name": "v1.metrics.example.com"}, "spec": {
        "group": "metrics.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
        "service": {"name": "metrics", "namespace": "default"}}});
    let made = cluster.create("apiservices", metrics).await.unwrap();
    assert_eq!(available(&made), [Value::Null, Value::Null, Value::Null]);
}
