//! Which crate may depend on which: the forbidden edges of ARCHITECTURE.md, from `cargo metadata`.

use std::path::Path;

use cargo_metadata::{Metadata, Package};

use crate::workspace;

/// Edges from crates whose folder starts with one of `from` to anything in `to` are forbidden.
#[derive(Debug)]
struct Rule {
    /// Folder prefixes; the empty one is every crate.
    from: &'static [&'static str],
    /// Folders (with a slash) of our own crates, or names of others'.
    to: &'static [&'static str],
    except_from: &'static [&'static str],
    because: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        from: &["control-plane/"],
        to: &["node-agent/", "ebpf/"],
        except_from: &[],
        because: "the two halves meet only at the Kubernetes HTTP API",
    },
    Rule {
        from: &["node-agent/"],
        to: &["control-plane/"],
        except_from: &[],
        because: "the two halves meet only at the Kubernetes HTTP API",
    },
    Rule {
        from: &[""],
        to: &["aya", "aya-obj", "aya-log", "aya-build"],
        except_from: &["node-agent/maps/"],
        because: "only node-agent/maps depends on aya",
    },
    Rule {
        from: &[""],
        to: &["axum", "http", "tower-http"],
        except_from: &[
            "control-plane/apiserver/",
            "control-plane/daemon/",
            "node-agent/daemon/",
            "node-agent/kubelet/",
            "tests/",
        ],
        because: "only control-plane/apiserver, the kubelet with its own API and the daemons know HTTP",
    },
    Rule {
        from: &["control-plane/store/"],
        to: &["kube", "k8s-openapi", "control-plane/"],
        except_from: &[],
        because: "the store knows no Kubernetes",
    },
    Rule {
        from: &["node-agent/model/", "ebpf/packet/"],
        to: &[
            "tokio",
            "nix",
            "libc",
            "kube",
            "k8s-openapi",
            "rtnetlink",
            "bollard",
            "reqwest",
            "rand",
            "node-agent/",
        ],
        except_from: &[],
        because: "model and packet do no IO and read no clock",
    },
    Rule {
        from: &[
            "node-agent/reconcile/",
            "node-agent/reflect/",
            "node-agent/overlay/",
        ],
        to: &["node-agent/maps/"],
        except_from: &[],
        because: "the reconciler sees the maps through model's MapSink only",
    },
    Rule {
        from: &["node-agent/host/", "node-agent/cni/", "node-agent/maps/"],
        to: &["kube", "k8s-openapi"],
        except_from: &[],
        because: "on the node only reflect, overlay, kubelet and the daemon know Kubernetes types",
    },
    Rule {
        from: &["ebpf/"],
        to: &["node-agent/", "control-plane/"],
        except_from: &[],
        because: "the kernel half depends on nothing above it",
    },
    Rule {
        from: &["xtask/"],
        to: &["control-plane/", "node-agent/", "ebpf/", "tests/"],
        except_from: &[],
        because: "xtask depends on no product crate",
    },
    Rule {
        from: &[""],
        to: &["tests/"],
        except_from: &["tests/"],
        because: "nothing depends on tests but tests",
    },
];

pub fn check(metadata: &Metadata, faults: &mut Vec<String>) {
    let members = metadata.workspace_packages();
    for package in &members {
        let from = folder(package);
        check_name(package, &from, faults);
        for dependency in &package.dependencies {
            let own = members
                .iter()
                .find(|member| member.name.as_str() == dependency.name);
            let to = own.map_or_else(|| dependency.name.clone(), |member| folder(member));
            for rule in RULES {
                if rule.forbids(&from, &to) {
                    faults.push(format!("{from} must not depend on {to}: {}", rule.because));
                }
            }
        }
    }
}

/// The crate's folder below the root, with a slash at its end.
fn folder(package: &Package) -> String {
    let manifest = package.manifest_path.as_std_path();
    let folder = manifest.parent().unwrap_or(Path::new(""));
    let folder = folder.strip_prefix(workspace::root()).unwrap_or(folder);
    format!("{}/", folder.display())
}

fn check_name(package: &Package, folder: &str, faults: &mut Vec<String>) {
    let expected = folder.trim_end_matches('/').replace('/', "-");
    if package.name.as_str() != expected {
        faults.push(format!(
            "{folder}Cargo.toml: the crate is named {} but its folder asks for {expected}",
            package.name
        ));
    }
}

impl Rule {
    fn forbids(&self, from: &str, to: &str) -> bool {
        let starts = |list: &[&str]| list.iter().any(|prefix| from.starts_with(prefix));
        let reaches = self.to.iter().any(|target| {
            if target.ends_with('/') {
                to.starts_with(target)
            } else {
                to == *target
            }
        });
        // A prefix rule such as store -> control-plane/ does not speak of the crate itself.
        starts(self.from) && !starts(self.except_from) && reaches && from != to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(from: &str, to: &str) -> bool {
        RULES.iter().any(|rule| rule.forbids(from, to))
    }

    #[test]
    fn the_halves_do_not_see_each_other() {
        assert!(forbidden("control-plane/daemon/", "node-agent/model/"));
        assert!(forbidden("node-agent/daemon/", "control-plane/registry/"));
    }

    #[test]
    fn only_maps_may_use_aya() {
        assert!(forbidden("node-agent/daemon/", "aya"));
        assert!(forbidden("tests/netns/", "aya"));
        assert!(!forbidden("node-agent/maps/", "aya"));
        assert!(!forbidden("ebpf/programs/", "aya-ebpf"));
    }

    #[test]
    fn tests_see_everything_and_nobody_sees_tests() {
        assert!(!forbidden("tests/e2e/", "control-plane/apiserver/"));
        assert!(!forbidden("tests/netns/", "tests/testkit/"));
        assert!(forbidden("node-agent/maps/", "tests/testkit/"));
    }

    #[test]
    fn ordinary_edges_are_allowed() {
        assert!(!forbidden(
            "control-plane/registry/",
            "control-plane/store/"
        ));
        assert!(!forbidden("node-agent/reconcile/", "node-agent/model/"));
        assert!(!forbidden("node-agent/model/", "ebpf/abi/"));
        assert!(!forbidden("control-plane/apiserver/", "axum"));
    }
}
