//! Custom resources as a client meets them that does not wait.

mod common;

use common::Server;
use http::Method;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn who_has_defined_a_kind_may_use_it_at_once() {
    let server = Server::start().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for at in 0..20 {
        let plural = format!("things{at}");
        let definition = json!({
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {
                "group": "example.com",
                "scope": "Cluster",
                "names": {"plural": plural, "kind": format!("Thing{at}")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema":
                    {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        });
        let made = server.post(definitions, definition).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let things = format!("/apis/example.com/v1/{plural}");
        let made = server
            .post(&things, json!({"metadata": {"name": "t"}, "a": 1}))
            .await;
        assert_eq!(made.status, 201, "{}", made.text());
        let strategic = [("content-type", "application/strategic-merge-patch+json")];
        let one = format!("{things}/t");
        let refused = server.ask(Method::PATCH, &one, &strategic, "{}").await;
        assert_eq!(refused.status, 415, "{}", refused.text());
        let gone = server
            .delete(&format!("{definitions}/{plural}.example.com"))
            .await;
        assert_eq!(gone.status, 200, "{}", gone.text());
        assert_eq!(server.get(&things).await.status, 404);
    }
}
