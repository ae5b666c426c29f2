//! Reading request bodies, up to the size that Kubernetes reads.

use axum::body::Body;
use bytes::Bytes;
use control_plane_registry::ApiError;
use control_plane_registry::errors::Result;

/// 3 MiB, as kube-apiserver.
pub const MAX: usize = 3 * 1024 * 1024;

/// The whole body.
///
/// # Errors
/// 413 when it is larger than [`MAX`], 400 when the client goes away.
pub async fn read(body: Body) -> Result<Bytes> {
    match axum::body::to_bytes(body, MAX).await {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            let limited = std::error::Error::source(&error)
                .is_some_and(|e| e.is::<http_body_util::LengthLimitError>());
            if limited {
                Err(ApiError::too_large(MAX))
            } else {
                Err(ApiError::bad_request(format!(
                    "cannot read the body: {error}"
                )))
            }
        }
    }
}
