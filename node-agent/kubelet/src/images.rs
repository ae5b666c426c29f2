//! Getting a container's image onto the node, as `imagePullPolicy` says.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{events::Recorder, metrics, metrics::Metrics, runtime::Runtime, status::Waiting};

/// Makes sure that the image is there; answers why not in the words of the container's status.
pub(crate) async fn ensure(
    runtime: &Runtime,
    recorder: &Recorder,
    metrics: &Metrics,
    pod: &Pod,
    container: &Container,
) -> Result<(), Waiting> {
    let name = Some(container.name.as_str());
    let Some(image) = container.image.as_deref().filter(|image| !image.is_empty()) else {
        return Err(Waiting {
            reason: "InvalidImageName",
            message: "the container names no image".to_owned(),
        });
    };
    let inspect_error = |error| Waiting {
        reason: "ImageInspectError",
        message: format!("image {image:?}: {}", crate::chain(&error)),
    };
    let present = runtime
        .image_id(image)
        .await
        .map_err(inspect_error)?
        .is_some();
    match policy(container, image) {
        "Never" if !present => {
            let message =
                format!("Container image {image:?} is not present with pull policy of Never");
            recorder.warn(pod, name, "ErrImageNeverPull", message.clone());
            return Err(Waiting {
                reason: "ErrImageNeverPull",
                message,
            });
        }
        "Always" => {}
        _ if present => {
            recorder.info(
                pod,
                name,
                "Pulled",
                format!("Container image {image:?} already present on machine"),
            );
            return Ok(());
        }
        _ => {}
    }
    recorder.info(pod, name, "Pulling", format!("Pulling image {image:?}"));
    match runtime.pull(image).await {
        Ok(()) => {
            metrics::count(&metrics.images_pulled);
            recorder.info(
                pod,
                name,
                "Pulled",
                format!("Successfully pulled image {image:?}"),
            );
            Ok(())
        }
        Err(error) => {
            let message = format!("Failed to pull image {image:?}: {}", crate::chain(&error));
            recorder.warn(pod, name, "Failed", message.clone());
            Err(Waiting {
                reason: "ErrImagePull",
                message,
            })
        }
    }
}

/// The policy, or the default that the API documents: `Always` for the tag `latest` and for none.
fn policy<'a>(container: &'a Container, image: &str) -> &'a str {
    match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ if image.contains('@') => "IfNotPresent",
        _ => {
            let last = image.rsplit('/').next().unwrap_or(image);
            match last.split_once(':') {
                Some((_, tag)) if tag != "latest" => "IfNotPresent",
                _ => "Always",
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_follows_the_tag() {
        let container = Container::default();
        for (image, expected) in [
            ("hello", "Always"),
            ("hello:latest", "Always"),
            ("hello:1", "IfNotPresent"),
            ("reg.example:5000/hello", "Always"),
            ("hello@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(policy(&container, image), expected, "{image}");
        }
        let container = Container {
            image_pull_policy: Some("Never".to_owned()),
            ..Container::default()
        };
        assert_eq!(policy(&container, "hello"), "Never");
    }
}
