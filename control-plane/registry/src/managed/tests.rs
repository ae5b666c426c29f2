//! What the documentation of server-side apply says, case by case.

use serde_json::{Value, json};

use super::*;
use crate::kinds;

fn kind(plural: &str) -> &'static Kind {
    kinds::all()
        .find(|k| k.plural == plural && k.conversion.is_none())
        .unwrap()
}

fn who(manager: &str) -> Writer<'_> {
    Writer {
        manager,
        subresource: None,
    }
}

fn applied(live: Option<&Value>, config: &Value, manager: &str) -> Value {
    apply(kind("deployments"), live, config, who(manager), false).unwrap()
}

fn conflicts(live: &Value, config: &Value, manager: &str) -> Vec<(String, String)> {
    match apply(kind("deployments"), Some(live), config, who(manager), false) {
        Err(Refusal::Conflicts(fields)) => fields,
        other => panic!("{other:?}"),
    }
}

/// The fields of one owner.
fn owned(object: &Value, manager: &str) -> Value {
    let all = object.items("/metadata/managedFields").iter();
    let mine = all.clone().find(|e| e.text("/manager") == manager);
    mine.map_or(Value::Null, |e| e["fieldsV1"].clone())
}

fn containers(list: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"template": {"spec": {"containers": list}}}})
}

#[test]
fn the_first_apply_owns_what_it_says() {
    let config = containers(
        json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "args": ["a", "b"]}]),
    );
    let live = applied(None, &config, "a");
    assert_eq!(
        owned(&live, "a"),
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
            ".": {}, "f:name": {}, "f:image": {}, "f:args": {},
            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
        }}}}}})
    );
}

#[test]
fn what_is_no_longer_applied_goes_unless_somebody_else_has_it() {
    let both = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"replicas": 3, "paused": true}});
    let mut live = applied(None, &both, "a");
    // Somebody else applies the same value: it is shared.
    live = applied(Some(&live), &json!({"spec": {"replicas": 3}}), "b");
    live = applied(
        Some(&live),
        &json!({"metadata": {"labels": {"a": "1"}}}),
        "a",
    );
    assert_eq!(live["metadata"]["labels"], json!({"a": "1"}));
    assert_eq!(live["spec"], json!({"replicas": 3}));
    assert_eq!(
        owned(&live, "a"),
        json!({"f:metadata": {"f:labels": {"f:a": {}}}})
    );
}

#[test]
fn a_field_of_another_is_a_conflict_until_it_is_forced() {
    let three = json!({"spec": {"replicas": 3, "minReadySeconds": 1}});
    let live = applied(None, &three, "a");
    let five = json!({"spec": {"replicas": 5, "minReadySeconds": 1}});
    assert_eq!(
        conflicts(&live, &five, "b"),
        [("\"a\"".to_owned(), ".spec.replicas".to_owned())]
    );
    let live = apply(kind("deployments"), Some(&live), &five, who("b"), true).unwrap();
    assert_eq!(live["spec"]["replicas"], 5);
    assert_eq!(
        owned(&live, "a"),
        json!({"f:spec": {"f:minReadySeconds": {}}})
    );
    // Who lost the field and applies the new value has it again, with the other.
    let live = applied(Some(&live), &five, "a");
    assert_eq!(owned(&live, "a"), owned(&live, "b"));
}

#[test]
fn a_write_takes_what_it_changes() {
    let mut live = applied(
        None,
        &json!({"spec": {"replicas": 3, "minReadySeconds": 1}}),
        "a",
    );
    let old = live.clone();
    live["spec"]["replicas"] = json!(4);
    update(kind("deployments"), Some(&old), &mut live, who("scaler"));
    assert_eq!(
        owned(&live, "scaler"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    let three = json!({"spec": {"replicas": 3, "minReadySeconds": 1}});
    assert_eq!(
        conflicts(&live, &three, "a"),
        [(
            "\"scaler\" using apps/v1".to_owned(),
            ".spec.replicas".to_owned()
        )]
    );
    // Giving the field up leaves it to the other.
    let live = applied(Some(&live), &json!({"spec": {"minReadySeconds": 1}}), "a");
    assert_eq!(live["spec"]["replicas"], 4);
}

#[test]
fn items_of_lists_belong_to_those_who_made_them() {
    let mut live = applied(
        None,
        &containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
        "x",
    );
    live = applied(
        Some(&live),
        &containers(json!([{"name": "c", "image": "1"}])),
        "y",
    );
    let names = |v: &Value| -> Vec<String> {
        let list = v.items("/spec/template/spec/containers");
        list.iter().map(|c| c.text("/name").to_owned()).collect()
    };
    assert_eq!(names(&live), ["a", "b", "c"]);
    // An item goes whole, with what the system had filled in.
    live["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = json!("Always");
    live = applied(
        Some(&live),
        &containers(json!([{"name": "a", "image": "2"}])),
        "x",
    );
    assert_eq!(names(&live), ["a", "c"]);
    live = applied(
        Some(&live),
        &containers(json!([{"name": "c", "image": "1"}, {"name": "d", "image": "1"}])),
        "y",
    );
    assert_eq!(names(&live), ["a", "c", "d"]);
}

#[test]
fn the_order_is_that_of_the_config() {
    let live = applied(
        None,
        &containers(json!([{"name": "a"}, {"name": "b"}, {"name": "c"}])),
        "x",
    );
    let live = applied(
        Some(&live),
        &containers(json!([{"name": "c"}, {"name": "a"}])),
        "y",
    );
    let list = live.items("/spec/template/spec/containers");
    let names: Vec<&str> = list.iter().map(|c| c.text("/name")).collect();
    assert_eq!(names, ["c", "a", "b"]);
}

#[test]
fn atomic_lists_and_maps_are_owned_whole() {
    let config = json!({"spec": {"selector": {"matchLabels": {"a": "1"}},
        "template": {"spec": {"tolerations": [{"key": "a"}]}}}});
    let live = applied(None, &config, "a");
    assert_eq!(
        owned(&live, "a"),
        json!({"f:spec": {"f:selector": {}, "f:template": {"f:spec": {"f:tolerations": {}}}}})
    );
    let other = json!({"spec": {"template": {"spec": {"tolerations": [{"key": "b"}]}}}});
    assert_eq!(
        conflicts(&live, &other, "b")[0].1,
        ".spec.template.spec.tolerations"
    );
}

#[test]
fn sets_are_shared_by_their_values() {
    let one = json!({"metadata": {"finalizers": ["x/a"]}});
    let mut live = applied(None, &one, "a");
    live = applied(
        Some(&live),
        &json!({"metadata": {"finalizers": ["x/b"]}}),
        "b",
    );
    assert_eq!(live["metadata"]["finalizers"], json!(["x/a", "x/b"]));
    assert_eq!(
        owned(&live, "b"),
        json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}}})
    );
    live = applied(Some(&live), &json!({}), "a");
    assert_eq!(live["metadata"]["finalizers"], json!(["x/b"]));
}

#[test]
fn status_and_the_rest_are_kept_apart() {
    let mut live = json!({"metadata": {"name": "d", "uid": "u"}, "spec": {"replicas": 1}});
    update(kind("deployments"), None, &mut live, who("a"));
    let old = live.clone();
    live["status"] = json!({"replicas": 1});
    let controller = Writer {
        manager: "a",
        subresource: Some(Subresource::Status),
    };
    update(kind("deployments"), Some(&old), &mut live, controller);
    let entries = live.items("/metadata/managedFields");
    let rest = entries
        .iter()
        .find(|e| e.text("/subresource").is_empty())
        .unwrap();
    assert_eq!(rest["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let status = entries
        .iter()
        .find(|e| e.text("/subresource") == "status")
        .unwrap();
    assert_eq!(status["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    let error = conflicts(&live, &json!({"spec": {"replicas": 2}}), "b");
    assert_eq!(error[0].0, "\"a\" using apps/v1");
}

#[test]
fn what_was_there_before_anybody_was_remembered_has_an_owner() {
    let live = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}});
    let fields = conflicts(&live, &json!({"spec": {"replicas": 2}}), "a");
    assert_eq!(
        fields,
        [(
            "\"before-first-apply\" using apps/v1".to_owned(),
            ".spec.replicas".to_owned()
        )]
    );
}

#[test]
fn the_eleventh_writer_pushes_the_first_into_the_past() {
    let mut live = json!({"metadata": {"name": "d"}});
    for at in 0..12 {
        let old = live.clone();
        live.put(&format!("/metadata/labels/l{at}"), "x");
        update(
            kind("deployments"),
            Some(&old),
            &mut live,
            who(&format!("m{at:02}")),
        );
    }
    let entries = live.items("/metadata/managedFields");
    assert_eq!(entries.len(), UPDATES_MAX);
    assert!(entries.iter().any(|e| e.text("/manager") == ANCIENT));
}

#[test]
fn entries_are_cleared_by_an_empty_one_and_lists_need_their_keys() {
    let old = applied(None, &json!({"spec": {"replicas": 1}}), "a");
    let mut new = old.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    update(kind("deployments"), Some(&old), &mut new, who("b"));
    assert_eq!(new["metadata"].get("managedFields"), None);
    let nameless = containers(json!([{"image": "i"}]));
    let refusal = apply(kind("deployments"), None, &nameless, who("a"), false).unwrap_err();
    assert!(
        matches!(refusal, Refusal::Malformed(why) if why.contains(".spec.template.spec.containers[0]"))
    );
}

#[test]
fn nothing_changes_when_nothing_is_new() {
    let config = containers(json!([{"name": "c", "image": "i"}]));
    let mut live = applied(None, &config, "a");
    live["metadata"]["managedFields"][0]["time"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(applied(Some(&live), &config, "a"), live);
    let mut same = live.clone();
    update(kind("deployments"), Some(&live), &mut same, who("b"));
    assert_eq!(same, live);
}

#[test]
fn what_kubectl_notes_of_its_manifest_stays_true() {
    const NOTE: &str = "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration";
    let three = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3}});
    let mut live = applied(None, &three, "kubectl");
    assert_eq!(live.text(NOTE), "", "there was none");
    live.put(NOTE, "{}");
    let four = json!({"metadata": {"name": "d"}, "spec": {"replicas": 4}});
    let force =
        |manager| apply(kind("deployments"), Some(&live), &four, who(manager), true).unwrap();
    assert_eq!(force("kubectl").text(NOTE), format!("{four}\n"));
    assert_eq!(force("somebody").text(NOTE), "{}");
}
