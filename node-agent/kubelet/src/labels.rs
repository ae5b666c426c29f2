//! The labels by which a kubelet finds its containers again after it was restarted: those of dockershim.

pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// The container's name in the pod; `POD` for the sandbox.
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// How often the container was started before; for a sandbox, how many there were before.
pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// The image as the pod names it.
pub(crate) const IMAGE: &str = "io.kubernetes.container.image";
/// The sandbox that a container was joined to.
pub(crate) const SANDBOX_ID: &str = "io.kubernetes.sandbox.id";

/// What [`CONTAINER_NAME`] says of a sandbox; no container can be called so, since names are lower-case (RFC 1123).
pub(crate) const SANDBOX: &str = "POD";
