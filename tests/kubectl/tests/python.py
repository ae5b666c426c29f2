"""What people do with the Python client. Prints one line for each part that went well; the first failure ends it."""

import sys
import threading
import time

from kubernetes import client, dynamic, utils, watch
from kubernetes.client.rest import ApiException

configuration = client.Configuration()
configuration.host = sys.argv[1]
api = client.ApiClient(configuration)
core = client.CoreV1Api(api)
apps = client.AppsV1Api(api)
custom = client.CustomObjectsApi(api)

POD = {
    "metadata": {"name": "p", "labels": {"app": "web"}},
    "spec": {"containers": [{"name": "c", "image": "busybox:1"}]},
}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "busybox:1"}]},
        },
    },
}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "properties": {"size": {"type": "integer"}}}
                        },
                    }
                },
            }
        ],
    },
}


def equal(found, wanted):
    if found != wanted:
        raise AssertionError(f"expected {wanted!r}, found {found!r}")


def refused(status, reason, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ApiException as error:
        equal(error.status, status)
        if f'"reason":"{reason}"' not in error.body:
            raise AssertionError(f"no reason {reason} in {error.body}")
        return
    raise AssertionError(f"{call.__name__} should be refused with {status}")


def objects():
    """Typed objects are made, read, changed and listed."""
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="c", labels={"a": "b"}), data={"x": "1"})
    made = core.create_namespaced_config_map("default", body)
    equal(made.data, {"x": "1"})
    refused(409, "AlreadyExists", core.create_namespaced_config_map, "default", body)
    refused(404, "NotFound", core.read_namespaced_config_map, "none", "default")
    made.data["y"] = "2"
    changed = core.replace_namespaced_config_map("c", "default", made)
    equal(changed.data, {"x": "1", "y": "2"})
    refused(409, "Conflict", core.replace_namespaced_config_map, "c", "default", made)
    named = core.list_namespaced_config_map("default", label_selector="a=b", field_selector="metadata.name=c")
    equal([item.metadata.name for item in named.items], ["c"])
    nameless = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="made-"))
    dry = core.create_namespaced_config_map("default", nameless, dry_run="All")
    equal(dry.metadata.name[:5], "made-")
    equal(client.VersionApi(api).get_code().major, "1")
    equal(client.CoreApi(api).get_api_versions().versions, ["v1"])
    groups = [group.name for group in client.ApisApi(api).get_api_versions().groups]
    equal("apps" in groups and "batch" in groups, True)
    equal(client.AppsApi(api).get_api_group().preferred_version.group_version, "apps/v1")
    equal("deployments/scale" in [r.name for r in apps.get_api_resources().resources], True)


def patches():
    """A dictionary is a strategic merge, a list a JSON patch, and any type can be asked for."""
    apps.create_namespaced_deployment("default", DEPLOYMENT)
    sidecar = {"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "busybox:1"}]}}}}
    merged = apps.patch_namespaced_deployment("web", "default", sidecar)
    equal(sorted(c.name for c in merged.spec.template.spec.containers), ["c", "d"])
    scaled = apps.patch_namespaced_deployment(
        "web", "default", [{"op": "replace", "path": "/spec/replicas", "value": 3}]
    )
    equal(scaled.spec.replicas, 3)
    merged = apps.patch_namespaced_deployment(
        "web", "default", {"metadata": {"labels": {"a": "b"}}}, _content_type="application/merge-patch+json"
    )
    equal(merged.metadata.labels, {"a": "b"})
    applied = core.patch_namespaced_config_map(
        "applied",
        "default",
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"x": "1"}},
        field_manager="python",
        force=True,
        _content_type="application/apply-patch+yaml",
    )
    equal([entry.manager for entry in applied.metadata.managed_fields], ["python"])
    scale = apps.patch_namespaced_deployment_scale("web", "default", {"spec": {"replicas": 5}})
    equal(scale.spec.replicas, 5)
    equal(apps.read_namespaced_deployment_scale("web", "default").spec.replicas, 5)


def pages():
    """A list comes in pages, and the pages are one list."""
    for number in range(5):
        core.create_namespaced_secret("default", {"metadata": {"name": f"s{number}", "labels": {"page": "x"}}})
    names, token = [], None
    while True:
        page = core.list_namespaced_secret("default", limit=2, _continue=token, label_selector="page=x")
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    equal(names, ["s0", "s1", "s2", "s3", "s4"])
    core.delete_collection_namespaced_secret("default", label_selector="page=x")
    equal(core.list_namespaced_secret("default", label_selector="page=x").items, [])


def watches():
    """A watch tells what happens after the list."""
    version = core.list_namespaced_pod("default").metadata.resource_version
    seen = []

    def follow():
        stream = watch.Watch().stream(
            core.list_namespaced_pod, "default", resource_version=version, timeout_seconds=20
        )
        for event in stream:
            seen.append((event["type"], event["object"].metadata.name))
            if event["type"] == "DELETED":
                return

    follower = threading.Thread(target=follow)
    follower.start()
    core.create_namespaced_pod("default", POD)
    core.patch_namespaced_pod("p", "default", {"metadata": {"labels": {"tier": "front"}}})
    equal(core.read_namespaced_pod_log("p", "default"), "")
    core.create_namespaced_pod_eviction("p", "default", {"metadata": {"name": "p"}})
    follower.join(30)
    equal(seen, [("ADDED", "p"), ("MODIFIED", "p"), ("DELETED", "p")])


def dynamic_and_custom():
    """Custom resources by the dynamic client, which reads the older discovery, and by the custom objects' own."""
    utils.create_from_dict(api, DEFINITION)
    dynamically = dynamic.DynamicClient(api)
    definitions = dynamically.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
    for _ in range(100):
        definition = definitions.get(name="widgets.example.com").to_dict()
        conditions = definition.get("status", {}).get("conditions", [])
        if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
            break
        time.sleep(0.1)
    widgets = dynamically.resources.get(api_version="example.com/v1", kind="Widget")
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 1}}
    equal(widgets.create(body=widget, namespace="default").spec.size, 1)
    widget["spec"]["size"] = 2
    applied = widgets.server_side_apply(body=widget, namespace="default", field_manager="python", force_conflicts=True)
    equal(applied.spec.size, 2)
    listed = custom.list_namespaced_custom_object("example.com", "v1", "default", "widgets")
    equal([item["spec"]["size"] for item in listed["items"]], [2])
    refused(
        422, "Invalid", custom.patch_namespaced_custom_object,
        "example.com", "v1", "default", "widgets", "w", {"spec": {"size": "x"}},
    )
    custom.delete_namespaced_custom_object("example.com", "v1", "default", "widgets", "w")
    pods = dynamically.resources.get(api_version="v1", kind="Pod")
    equal(pods.get(namespace="default").items, [])


def reviews():
    """The server is asked what the client may do."""
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(verb="get", resource="pods", namespace="default")
        )
    )
    equal(client.AuthorizationV1Api(api).create_self_subject_access_review(review).status.allowed, True)


for part in [objects, patches, pages, watches, dynamic_and_custom, reviews]:
    part()
    print(f"{part.__name__}: {part.__doc__}")
