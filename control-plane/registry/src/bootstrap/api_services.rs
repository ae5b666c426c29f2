//! An APIService for every group and version that the server answers itself.

use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::errors::Result;
use crate::kinds::{Kinds, all};
use crate::registry::Registry;

const GROUP: &str = "apiregistration.k8s.io";

/// Says that the server makes the object when it starts.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Kubernetes' order of the groups, and of the versions of one: the higher comes first. What serves APIServices has none.
const PRIORITIES: &[(&str, &str, i32, i32)] = &[
    ("", "v1", 18000, 1),
    ("apps", "v1", 17800, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30),
    ("batch", "v1", 17400, 15),
    ("networking.k8s.io", "v1", 17200, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("storage.k8s.io", "v1", 16800, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
];

impl Registry {
    /// Makes those that are not there; what is there is left as it is.
    pub(super) async fn make_api_services(&self) -> Result<()> {
        // Together, so that they are one commit to the disk.
        let objects = objects();
        try_join_all(objects.map(|object| self.ensure(GROUP, "apiservices", "", object))).await?;
        Ok(())
    }
}

fn objects() -> impl Iterator<Item = Value> {
    let served = Kinds::new(all().collect()).group_versions();
    let own = PRIORITIES
        .iter()
        .filter(move |(group, version, ..)| served.contains(&(group, version)));
    own.map(|(group, version, of_group, of_version)| {
        json!({
            "metadata": {"name": format!("{version}.{group}"), "labels": {MANAGED: "onstart"}},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": of_group,
                "versionPriority": of_version,
            },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_and_version_has_one_but_that_of_themselves() {
        let names = objects().map(|object| object["metadata"]["name"].clone());
        let mut names: Vec<_> = names.collect();
        let served = Kinds::new(all().collect()).group_versions().into_iter();
        let others = served.filter(|(group, _)| *group != GROUP);
        let mut wanted: Vec<_> = others
            .map(|(group, version)| json!(format!("{version}.{group}")))
            .collect();
        for list in [&mut names, &mut wanted] {
            list.sort_by_key(ToString::to_string);
        }
        assert_eq!(names, wanted);
    }
}
