//! Rules against actions, without a server.

use super::*;

fn rule(text: &str) -> Rule {
    serde_yaml_ng::from_str(text).unwrap()
}

fn on<'a>(verb: &'a str, resource: &'a str, subresource: &'a str, name: &'a str) -> Action<'a> {
    Action {
        verb,
        on: On::Resource(Resource {
            group: "",
            resource,
            subresource,
            namespace: "a",
            name,
        }),
    }
}

#[test]
fn a_rule_allows_what_it_names() {
    let read =
        rule("{verbs: [get, list], apiGroups: [''], resources: [pods, pods/log, '*/scale']}");
    for (action, allowed) in [
        (on("get", "pods", "", "p"), true),
        (on("get", "pods", "log", "p"), true),
        (on("get", "deployments", "scale", "d"), true),
        (on("get", "pods", "exec", "p"), false),
        (on("delete", "pods", "", "p"), false),
        (on("get", "secrets", "", "s"), false),
    ] {
        assert_eq!(read.allows(&action), allowed, "{}", action.describe());
    }
    let named = rule("{verbs: ['*'], apiGroups: ['*'], resources: ['*'], resourceNames: [one]}");
    assert!(named.allows(&on("update", "configmaps", "", "one")));
    assert!(!named.allows(&on("update", "configmaps", "", "two")));
    assert!(!named.allows(&on("list", "configmaps", "", "")));
    let paths = rule("{verbs: [get], nonResourceURLs: [/healthz, /api/*]}");
    let path = |path| Action {
        verb: "get",
        on: On::Path(path),
    };
    assert!(paths.allows(&path("/healthz")) && paths.allows(&path("/api/v1")));
    assert!(!paths.allows(&path("/healthz/x")));
}

#[test]
fn nobody_gives_what_he_has_not() {
    let star = rule("{verbs: ['*'], apiGroups: ['*'], resources: ['*']}");
    let pods = rule("{verbs: [get, list], apiGroups: [''], resources: [pods]}");
    let within = |wanted: &Rule, own: &Rule| wanted.atoms("a").iter().all(|a| own.allows(a));
    assert!(within(&pods, &star) && within(&star, &star) && within(&pods, &pods));
    assert!(!within(&star, &pods));
    let more = rule("{verbs: [get, watch], apiGroups: [''], resources: [pods]}");
    assert!(!within(&more, &pods));
    let one = rule("{verbs: [get], apiGroups: [''], resources: [pods], resourceNames: [p]}");
    assert!(within(&one, &pods) && !within(&pods, &one));
}
