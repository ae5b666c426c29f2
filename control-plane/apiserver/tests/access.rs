//! Who asks, and whether they may: tokens, roles, reviews, acting as somebody else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use common::{Answer, Server};
use control_plane_apiserver::Settings;
use control_plane_apiserver::access::{
    Authenticators, Authorization, KeyPair, ServiceAccounts, User,
};
use http::{Method, StatusCode};
use rcgen::PublicKeyData;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn service_accounts() -> Arc<ServiceAccounts> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let keys = KeyPair {
        private: pair.serialize_der(),
        public: pair.der_bytes().to_vec(),
    };
    Arc::new(ServiceAccounts::new("https://issuer.example", Vec::new(), &keys).unwrap())
}

/// A server where roles decide. Tokens are the users' names; `admin` is in `system:masters`.
async fn start() -> Server {
    let user = |name: &str, groups: &[&str]| {
        let groups = groups.iter().map(ToString::to_string).collect();
        (
            name.to_owned(),
            Arc::new(User::authenticated(name, "", groups)),
        )
    };
    let tokens = [
        user("admin", &["system:masters"]),
        user("jane", &["dev"]),
        user("joe", &[]),
        user("n1", &["system:nodes"]),
    ];
    let server = Server::start_with(Settings {
        authenticators: Authenticators {
            tokens: BTreeMap::from(tokens),
            service_accounts: Some(service_accounts()),
            no_anonymous: false,
        },
        authorization: Authorization::Rbac,
        ..Settings::default()
    })
    .await;
    server.registry.make_roles().await.unwrap();
    server
}

async fn ask(server: &Server, who: &str, method: Method, uri: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {who}");
    let mut headers = vec![("authorization", bearer.as_str())];
    if who.is_empty() {
        headers.clear();
    }
    let body = if body.is_null() {
        Body::empty()
    } else {
        Body::from(body.to_string())
    };
    server.ask(method, uri, &headers, body).await
}

async fn get(server: &Server, who: &str, uri: &str) -> StatusCode {
    ask(server, who, Method::GET, uri, Value::Null).await.status
}

async fn make(server: &Server, who: &str, uri: &str, body: Value) -> Answer {
    ask(server, who, Method::POST, uri, body).await
}

fn binding(role_kind: &str, role: &str, subject: Value) -> Value {
    json!({"metadata": {"name": format!("{role}-{}", subject["name"].as_str().unwrap())},
        "roleRef": {"kind": role_kind, "name": role}, "subjects": [subject]})
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_say_who_may_do_what() {
    let server = start().await;
    let refused = ask(&server, "jane", Method::GET, PODS, Value::Null).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
        "reason": "Forbidden", "details": {"kind": "pods"}, "code": 403});
    assert_eq!(refused.json(), want);
    let group = json!({"kind": "Group", "name": "dev"});
    let bind = binding("ClusterRole", "view", group);
    let made = make(
        &server,
        "admin",
        &format!("{RBAC}/namespaces/default/rolebindings"),
        bind,
    )
    .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    // `view` has no rules of its own: it aggregates.
    assert_eq!(get(&server, "jane", PODS).await, StatusCode::OK);
    assert_eq!(
        get(&server, "jane", "/api/v1/namespaces/default/secrets").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        get(&server, "jane", "/api/v1/pods").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        get(&server, "jane", "/api/v1/namespaces/kube-system/pods").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(get(&server, "joe", PODS).await, StatusCode::FORBIDDEN);
    // Everybody who is known may look around, strangers only see that the server is there.
    assert_eq!(get(&server, "joe", "/apis").await, StatusCode::OK);
    assert_eq!(get(&server, "", "/version").await, StatusCode::OK);
    let stranger = ask(&server, "", Method::GET, "/apis", Value::Null).await;
    assert_eq!(
        stranger.json()["message"],
        "forbidden: User \"system:anonymous\" cannot get path \"/apis\""
    );
    assert_eq!(get(&server, "nobody", PODS).await, StatusCode::UNAUTHORIZED);
    // Who loses the binding loses the permission at once.
    let gone = format!("{RBAC}/namespaces/default/rolebindings/view-dev");
    ask(&server, "admin", Method::DELETE, &gone, Value::Null).await;
    for _ in 0..100 {
        if get(&server, "jane", PODS).await == StatusCode::FORBIDDEN {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("jane still sees pods");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_system_parts_may_do_their_work_and_no_more() {
    let server = start().await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let made = make(&server, "n1", lease, json!({"metadata": {"name": "n1"}})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(
        get(&server, "n1", "/apis/discovery.k8s.io/v1/endpointslices").await,
        StatusCode::OK
    );
    let made = make(
        &server,
        "n1",
        "/api/v1/namespaces/default/secrets",
        json!({"metadata": {"name": "s"}}),
    )
    .await;
    assert_eq!(made.status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_away_more_than_he_has() {
    let server = start().await;
    let jane = json!({"kind": "User", "name": "jane"});
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    make(
        &server,
        "admin",
        &bindings,
        binding("ClusterRole", "admin", jane.clone()),
    )
    .await;
    let role = |name: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]});
    let roles = format!("{RBAC}/namespaces/default/roles");
    let made = make(&server, "jane", &roles, role("r", "pods")).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let refused = make(&server, "jane", &roles, role("more", "nodes")).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("is attempting to grant RBAC permissions not currently held"),
        "{message}"
    );
    let patch = json!({"rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]});
    let headers = [
        ("authorization", "Bearer jane"),
        ("content-type", "application/merge-patch+json"),
    ];
    let patched = server
        .ask(
            Method::PATCH,
            &format!("{roles}/r"),
            &headers,
            patch.to_string(),
        )
        .await;
    assert_eq!(
        patched.status,
        StatusCode::FORBIDDEN,
        "a patch is no way around"
    );
    let refused = make(
        &server,
        "jane",
        &bindings,
        binding("ClusterRole", "cluster-admin", jane.clone()),
    )
    .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let made = make(
        &server,
        "jane",
        &bindings,
        binding(
            "ClusterRole",
            "view",
            json!({"kind": "User", "name": "joe"}),
        ),
    )
    .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_answer_what_would_be_allowed() {
    let server = start().await;
    let bindings = format!("{RBAC}/clusterrolebindings");
    make(
        &server,
        "admin",
        &bindings,
        binding(
            "ClusterRole",
            "view",
            json!({"kind": "User", "name": "jane"}),
        ),
    )
    .await;
    let authorization = "/apis/authorization.k8s.io/v1";
    let may = async |who: &str, verb: &str, resource: &str| {
        let spec = json!({"resourceAttributes": {"verb": verb, "resource": resource, "namespace": "default"}});
        let uri = format!("{authorization}/selfsubjectaccessreviews");
        make(&server, who, &uri, json!({"spec": spec})).await.json()["status"].clone()
    };
    let yes = may("jane", "get", "pods").await;
    assert_eq!(yes["allowed"], true);
    assert_eq!(
        yes["reason"],
        "RBAC: allowed by binding \"view-jane\" of ClusterRole \"view\" to User \"jane\" in \"default\""
    );
    assert_eq!(
        may("jane", "delete", "pods").await,
        json!({"allowed": false})
    );
    assert_eq!(may("admin", "delete", "pods").await["allowed"], true);

    let spec = json!({"user": "jane", "resourceAttributes": {"verb": "list", "resource": "pods"}});
    let uri = format!("{authorization}/subjectaccessreviews");
    let answer = make(&server, "admin", &uri, json!({"spec": spec}))
        .await
        .json();
    assert_eq!(answer["status"]["allowed"], true);
    let refused = make(&server, "jane", &uri, json!({"spec": spec})).await;
    assert_eq!(
        refused.status,
        StatusCode::FORBIDDEN,
        "others' permissions are not for everybody"
    );

    let uri = format!("{authorization}/selfsubjectrulesreviews");
    let answer = make(
        &server,
        "jane",
        &uri,
        json!({"spec": {"namespace": "default"}}),
    )
    .await
    .json();
    let rules = answer["status"]["resourceRules"].to_string();
    assert!(
        rules.contains("endpointslices") && !rules.contains("\"*\""),
        "{rules}"
    );

    let uri = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = make(&server, "jane", uri, json!({})).await.json();
    let want = json!({"username": "jane", "groups": ["dev", "system:authenticated"]});
    assert_eq!(answer["status"]["userInfo"], want);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_may_act_as_another_who_is_allowed_to() {
    let server = start().await;
    let whoami = async |headers: &[(&str, &str)]| {
        let uri = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        server.ask(Method::POST, uri, headers, "{}").await
    };
    let admin = ("authorization", "Bearer admin");
    let answer = whoami(&[
        admin,
        ("impersonate-user", "joe"),
        ("impersonate-group", "ops"),
        ("impersonate-extra-scopes", "s"),
    ])
    .await;
    let want = json!({"username": "joe", "groups": ["ops", "system:authenticated"], "extra": {"scopes": ["s"]}});
    assert_eq!(answer.json()["status"]["userInfo"], want);
    let account = whoami(&[
        admin,
        ("impersonate-user", "system:serviceaccount:default:a"),
    ])
    .await;
    assert_eq!(
        account.json()["status"]["userInfo"]["groups"][1],
        "system:serviceaccounts:default"
    );
    let refused = whoami(&[
        ("authorization", "Bearer jane"),
        ("impersonate-user", "admin"),
    ])
    .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(
        refused.json()["message"],
        "users \"admin\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    let alone = whoami(&[admin, ("impersonate-group", "ops")]).await;
    assert_eq!(alone.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_service_account_is_good_for_as_long_as_what_it_is_bound_to() {
    let server = start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    make(
        &server,
        "admin",
        accounts,
        json!({"metadata": {"name": "robot"}}),
    )
    .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "robot", "containers": [{"name": "c", "image": "i"}]}});
    make(&server, "admin", PODS, pod).await;
    let request = async |spec: Value| {
        make(
            &server,
            "admin",
            &format!("{accounts}/robot/token"),
            json!({"spec": spec}),
        )
        .await
    };
    let bound = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}, "expirationSeconds": 900});
    let answer = request(bound).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["kind"], "TokenRequest");
    assert_eq!(answer["spec"]["expirationSeconds"], 900);
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(token.split('.').count(), 3);

    let uri = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = make(&server, &token, uri, json!({})).await.json();
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:robot");
    assert_eq!(
        info["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    // Roles see it as what it is.
    assert_eq!(get(&server, &token, PODS).await, StatusCode::FORBIDDEN);
    let subject = json!({"kind": "ServiceAccount", "name": "robot", "namespace": "default"});
    make(
        &server,
        "admin",
        &format!("{RBAC}/namespaces/default/rolebindings"),
        binding("ClusterRole", "view", subject),
    )
    .await;
    assert_eq!(get(&server, &token, PODS).await, StatusCode::OK);

    let review = async |spec: Value| {
        let uri = "/apis/authentication.k8s.io/v1/tokenreviews";
        make(&server, "admin", uri, json!({"spec": spec}))
            .await
            .json()["status"]
            .clone()
    };
    let good = review(json!({"token": token})).await;
    assert_eq!(good["authenticated"], true);
    assert_eq!(good["audiences"], json!(["https://issuer.example"]));
    let other = review(json!({"token": token, "audiences": ["vault"]})).await;
    assert_eq!(
        other.get("authenticated"),
        None,
        "it is not for the vault: {other}"
    );
    let mut forged = token.clone().into_bytes();
    let at = forged.len() - 10;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    assert!(review(json!({"token": forged})).await["error"].is_string());
    assert_eq!(get(&server, &forged, PODS).await, StatusCode::UNAUTHORIZED);

    ask(
        &server,
        "admin",
        Method::DELETE,
        &format!("{PODS}/p?gracePeriodSeconds=0"),
        Value::Null,
    )
    .await;
    for _ in 0..100 {
        if get(&server, &token, PODS).await == StatusCode::UNAUTHORIZED {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the token outlives its pod");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_request_that_makes_no_sense_is_refused_and_others_can_verify_the_rest() {
    let server = start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let robot = json!({"metadata": {"name": "robot"}});
    make(&server, "admin", accounts, robot).await;
    let request = async |spec: Value| {
        let uri = format!("{accounts}/robot/token");
        make(&server, "admin", &uri, json!({"spec": spec})).await
    };
    let short = request(json!({"expirationSeconds": 60})).await;
    assert_eq!(short.status, StatusCode::UNPROCESSABLE_ENTITY);
    let missing = request(json!({"boundObjectRef": {"kind": "Pod", "name": "none"}})).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let none = make(
        &server,
        "admin",
        &format!("{accounts}/nobody/token"),
        json!({"spec": {}}),
    )
    .await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);

    // Others can verify it too.
    let keys = ask(
        &server,
        "admin",
        Method::GET,
        "/openid/v1/jwks",
        Value::Null,
    )
    .await
    .json();
    assert_eq!(keys["keys"][0]["kty"], "EC");
    let discovery = "/.well-known/openid-configuration";
    let document = ask(&server, "admin", Method::GET, discovery, Value::Null)
        .await
        .json();
    assert_eq!(document["issuer"], "https://issuer.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_roles_everybody_may_do_everything_and_reviews_say_so() {
    let server = Server::start().await;
    assert_eq!(server.get(PODS).await.status, StatusCode::OK);
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let spec = json!({"resourceAttributes": {"verb": "delete", "resource": "nodes"}});
    let answer = server.post(uri, json!({"spec": spec})).await.json();
    assert_eq!(answer["status"], json!({"allowed": true}));
    let answer = server
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            json!({}),
        )
        .await;
    assert_eq!(
        answer.json()["status"]["userInfo"]["username"],
        "system:anonymous"
    );
}
