//! Tokens of ServiceAccounts: signed, bound to an object if asked, and good for as long as both are there.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>; JWT: RFC 7519, ES256.

use control_plane_registry::errors::Result;
use control_plane_registry::json::Json;
use control_plane_registry::{ApiError, FieldError, Kind, Object, Registry, kinds};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::user::User;

/// Seconds that a token is good for when nobody asks for another time.
const LIFETIME: i64 = 3600;
/// The shortest time that can be asked for, and the longest that is given, in seconds.
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;

/// Signs and verifies.
#[derive(Clone)]
pub struct ServiceAccounts {
    issuer: String,
    /// Whom tokens are for, when nobody says; the first verifies for the server itself.
    audiences: Vec<String>,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    /// x and y of the public key, for those who verify by themselves.
    point: Vec<u8>,
}

/// A P-256 key pair.
#[derive(Clone)]
pub struct KeyPair {
    /// PKCS #8, DER.
    pub private: Vec<u8>,
    /// The point, uncompressed (SEC 1): 0x04, x, y.
    pub public: Vec<u8>,
}

/// A token that is good.
#[derive(Debug)]
pub struct Verified {
    pub user: User,
    /// Those of the asked audiences that it is for.
    pub audiences: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    about: About,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct About {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Reference {
    name: String,
    uid: String,
}

impl std::fmt::Debug for ServiceAccounts {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccounts")
            .field("issuer", &self.issuer)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for KeyPair {
    /// Without the private part.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").finish_non_exhaustive()
    }
}

impl ServiceAccounts {
    /// Signs as `issuer`, for `audiences` by default (empty: for the issuer).
    ///
    /// # Errors
    /// The key is no point of P-256.
    pub fn new(
        issuer: &str,
        mut audiences: Vec<String>,
        keys: &KeyPair,
    ) -> std::result::Result<Self, String> {
        let (first, point) = keys.public.split_first().unwrap_or((&0, &[]));
        if (*first, point.len()) != (4, 64) {
            return Err("the public key is no uncompressed point of P-256".to_owned());
        }
        if audiences.is_empty() {
            audiences.push(issuer.to_owned());
        }
        Ok(Self {
            issuer: issuer.to_owned(),
            audiences,
            key_id: key_id(&keys.public),
            signing: EncodingKey::from_ec_der(&keys.private),
            verifying: DecodingKey::from_ec_der(&keys.public),
            point: point.to_vec(),
        })
    }

    /// A token as `request` (`authentication.k8s.io/v1` `TokenRequest`) asks for it, with its status filled in.
    ///
    /// # Errors
    /// 422 for a time that is too short or an object that no token can be bound to, 404 and 409 for one that is not there.
    pub fn issue(
        &self,
        registry: &Registry,
        account: &Object,
        mut request: Value,
    ) -> Result<Value> {
        let seconds = request
            .integer("/spec/expirationSeconds")
            .unwrap_or(LIFETIME);
        check_time(seconds)?;
        let audiences: Vec<String> = match request.items("/spec/audiences") {
            [] => self.audiences.clone(),
            given => given
                .iter()
                .map(|a| a.as_str().unwrap_or_default().to_owned())
                .collect(),
        };
        let mut about = About {
            namespace: account.namespace.clone().into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference {
                name: account.name.clone().into(),
                uid: account.uid.clone().into(),
            },
        };
        bind(registry, &request, account, &mut about)?;
        let now = jiff::Timestamp::now();
        let expires = now.as_second() + seconds.min(LONGEST);
        let claims = Claims {
            aud: audiences.clone(),
            exp: expires,
            iat: now.as_second(),
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            about,
            nbf: now.as_second(),
            sub: User::of_service_account(&account.namespace, &account.name, "").name,
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        let token = jsonwebtoken::encode(&header, &claims, &self.signing)
            .map_err(|error| ApiError::internal(&error))?;
        let until = jiff::Timestamp::from_second(expires).unwrap_or(jiff::Timestamp::MAX);
        request.put("/metadata/name", &*account.name);
        request.put("/metadata/namespace", &*account.namespace);
        request.put("/metadata/creationTimestamp", text(now));
        request.put("/spec/audiences", audiences);
        request.put("/spec/expirationSeconds", seconds.min(LONGEST));
        request.put(
            "/status",
            json!({"token": token, "expirationTimestamp": text(until)}),
        );
        Ok(request)
    }

    /// Whose token this is, for one of `audiences` (empty: for the server itself).
    ///
    /// # Errors
    /// Why it is not good.
    pub fn verify(
        &self,
        registry: &Registry,
        token: &str,
        audiences: &[String],
    ) -> std::result::Result<Verified, String> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.validate_nbf = true;
        validation.leeway = 10;
        let wanted = if audiences.is_empty() {
            &self.audiences
        } else {
            audiences
        };
        validation.set_audience(wanted);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|error| error.to_string())?
            .claims;
        let about = &claims.about;
        let account = &about.serviceaccount;
        let namespace = about.namespace.as_str();
        is_there(registry, "serviceaccounts", namespace, account)?;
        let mut user = User::of_service_account(namespace, &account.name, &account.uid);
        let mut note = |key: &str, value: &str| {
            let key = format!("authentication.kubernetes.io/{key}");
            user.extra.insert(key, vec![value.to_owned()]);
        };
        note("credential-id", &format!("JTI={}", claims.jti));
        if let Some(secret) = &about.secret {
            is_there(registry, "secrets", namespace, secret)?;
        }
        if let Some(pod) = &about.pod {
            is_there(registry, "pods", namespace, pod)?;
            note("pod-name", &pod.name);
            note("pod-uid", &pod.uid);
        }
        if let Some(node) = &about.node {
            note("node-name", &node.name);
            note("node-uid", &node.uid);
        }
        let audiences = wanted.iter().filter(|a| claims.aud.contains(a));
        Ok(Verified {
            audiences: audiences.cloned().collect(),
            user,
        })
    }

    /// `/.well-known/openid-configuration`.
    #[must_use]
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks` (RFC 7517).
    #[must_use]
    pub fn key_set(&self) -> Value {
        let (x, y) = self.point.split_at(self.point.len() / 2);
        let encode = |bytes: &[u8]| base64_url(bytes);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256",
            "kid": self.key_id, "x": encode(x), "y": encode(y),
        }]})
    }
}

fn check_time(seconds: i64) -> Result<()> {
    let why = if seconds < SHORTEST {
        "may not specify a duration less than 10 minutes"
    } else if seconds > LONGEST {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, why);
    Err(ApiError::invalid_of(
        "authentication.k8s.io",
        "TokenRequest",
        "",
        &[error],
    ))
}

/// Notes the object that the token lives and dies with.
fn bind(registry: &Registry, request: &Value, account: &Object, about: &mut About) -> Result<()> {
    if !request.has("/spec/boundObjectRef") {
        return Ok(());
    }
    let wanted = |field: &str| request.text(&format!("/spec/boundObjectRef/{field}"));
    let kind = wanted("kind");
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        "Node" => "nodes",
        other => {
            let known = ["Node", "Pod", "Secret"];
            let error = FieldError::not_supported("spec.boundObjectRef.kind", other, &known);
            return Err(ApiError::invalid_of(
                "authentication.k8s.io",
                "TokenRequest",
                "",
                &[error],
            ));
        }
    };
    let found = find(registry, plural, &account.namespace, wanted("name"))?;
    if !wanted("uid").is_empty() && wanted("uid") != &*found.uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            wanted("uid")
        );
        return Err(ApiError::conflict(found.kind, &found.name, &why));
    }
    let reference = Some(Reference {
        name: found.name.clone().into(),
        uid: found.uid.clone().into(),
    });
    match kind {
        "Pod" => {
            let pod = found.value();
            let runs_as = match pod.text("/spec/serviceAccountName") {
                "" => "default",
                name => name,
            };
            if runs_as != &*account.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    account.name
                )));
            }
            about.pod = reference;
        }
        "Secret" => about.secret = reference,
        _ => about.node = reference,
    }
    Ok(())
}

fn find(
    registry: &Registry,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<std::sync::Arc<Object>> {
    let kind: &'static Kind =
        kinds::find("", "v1", plural).ok_or_else(ApiError::unknown_resource)?;
    let namespace = if kind.namespaced { namespace } else { "" };
    registry
        .peek(kind, namespace, name)
        .ok_or_else(|| ApiError::not_found(kind, name))
}

fn is_there(
    registry: &Registry,
    plural: &str,
    namespace: &str,
    wanted: &Reference,
) -> std::result::Result<(), String> {
    let found = find(registry, plural, namespace, &wanted.name).map_err(|e| e.to_string())?;
    if *found.uid == *wanted.uid {
        Ok(())
    } else {
        Err(format!("{plural} {:?} was made anew since", wanted.name))
    }
}

fn text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn key_id(public: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    base64_url(&Sha256::digest(public))
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
