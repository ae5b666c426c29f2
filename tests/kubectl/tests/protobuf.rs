//! The commands whose bodies are protobuf: `create`, `autoscale`, `auth`.

use anyhow::Result;
use serde_json::json;
use tests_kubectl::Server;

/// What follows `kubectl create`, and what is made.
const CREATED: &[(&str, &str)] = &[
    ("namespace shop", "namespace/shop"),
    (
        "configmap c --from-literal=a=1 --from-literal=b=2",
        "configmap/c",
    ),
    ("secret generic s --from-literal=password=x", "secret/s"),
    (
        "secret docker-registry d --docker-username=u --docker-password=p --docker-email=e",
        "secret/d",
    ),
    ("serviceaccount robot", "serviceaccount/robot"),
    ("service clusterip web --tcp=80:8080", "service/web"),
    (
        "service nodeport np --tcp=80 --node-port=30090",
        "service/np",
    ),
    (
        "service externalname out --external-name=example.com",
        "service/out",
    ),
    (
        "deployment web --image=busybox:1 --replicas=0 --port=80",
        "deployment.apps/web",
    ),
    ("job once --image=busybox:1 -- true", "job.batch/once"),
    (
        "cronjob hourly --image=busybox:1 --schedule=@hourly",
        "cronjob.batch/hourly",
    ),
    ("job now --from=cronjob/hourly", "job.batch/now"),
    (
        "ingress way --class=nginx --rule=a.example/x*=web:80",
        "ingress.networking.k8s.io/way",
    ),
    (
        "role reader --verb=get --resource=pods",
        "role.rbac.authorization.k8s.io/reader",
    ),
    (
        "rolebinding readers --role=reader --user=jane",
        "rolebinding.rbac.authorization.k8s.io/readers",
    ),
    (
        "clusterrole viewer --verb=get,list --resource=nodes",
        "clusterrole.rbac.authorization.k8s.io/viewer",
    ),
    (
        "clusterrolebinding viewers --clusterrole=viewer --serviceaccount=default:robot",
        "clusterrolebinding.rbac.authorization.k8s.io/viewers",
    ),
    (
        "poddisruptionbudget b --selector=app=web --min-available=1",
        "poddisruptionbudget.policy/b",
    ),
    (
        "priorityclass high --value=1000",
        "priorityclass.scheduling.k8s.io/high",
    ),
    ("quota q --hard=pods=10", "resourcequota/q"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_create_command_makes_its_object() -> Result<()> {
    let server = Server::start().await?;
    for (args, made) in CREATED {
        let args: Vec<&str> = ["create"].into_iter().chain(args.split(' ')).collect();
        let said = server.kubectl(&args).await?;
        assert_eq!(said, format!("{made} created\n"));
        server.kubectl(&["get", made, "-o", "yaml"]).await?;
    }
    let deployment = server.json(&["get", "deployment", "web"]).await?;
    let spec = &deployment["spec"];
    assert_eq!(spec["replicas"], 0);
    assert_eq!(spec["strategy"]["type"], "RollingUpdate");
    assert_eq!(
        spec["template"]["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "protocol": "TCP"}])
    );
    assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
    let secret = server.json(&["get", "secret", "s"]).await?;
    assert_eq!(secret["data"], json!({"password": "eA=="}));
    let service = server.json(&["get", "service", "np"]).await?;
    assert_eq!(service["spec"]["ports"][0]["nodePort"], 30090);
    let job = server.json(&["get", "job", "now"]).await?;
    assert_eq!(job["metadata"]["ownerReferences"][0]["name"], "hourly");
    assert_eq!(
        job["spec"]["template"]["spec"]["restartPolicy"],
        "OnFailure"
    );
    let scaled = server
        .kubectl(&["autoscale", "deployment/web", "--max=5", "--cpu=70%"])
        .await?;
    assert_eq!(
        scaled,
        "horizontalpodautoscaler.autoscaling/web autoscaled\n"
    );
    let autoscaler = server.json(&["get", "hpa", "web"]).await?;
    assert_eq!(
        autoscaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        70
    );
    let again = server.refused(&["create", "namespace", "shop"]).await?;
    assert!(
        again.contains("namespaces \"shop\" already exists"),
        "{again}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_what() -> Result<()> {
    let server = Server::start().await?;
    assert_eq!(
        server.kubectl(&["auth", "can-i", "create", "pods"]).await?,
        "yes\n"
    );
    assert_eq!(
        server
            .kubectl(&["auth", "can-i", "get", "/metrics"])
            .await?,
        "yes\n"
    );
    let list = server.kubectl(&["auth", "can-i", "--list"]).await?;
    assert!(list.contains("*.*"), "{list}");
    let who = server.kubectl(&["auth", "whoami"]).await?;
    assert!(who.contains("system:anonymous"), "{who}");
    Ok(())
}
