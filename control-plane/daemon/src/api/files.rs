//! Files that say who is who: tokens, and the key that signs them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use control_plane_apiserver::access::{KeyPair, User};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData};

/// Reads lines of `token,user,uid,"group1,group2"`
/// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#static-token-file>).
pub fn tokens(path: &Path) -> Result<BTreeMap<String, Arc<User>>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--token-auth-file: cannot read {shown}"))?;
    let mut tokens = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fields = fields(line);
        let [token, name, uid, groups @ ..] = fields.as_slice() else {
            bail!(
                "--token-auth-file: {shown} line {}: give at least token,user,uid",
                at + 1
            );
        };
        ensure!(
            !token.is_empty() && !name.is_empty(),
            "--token-auth-file: {shown} line {}: token and user must not be empty",
            at + 1
        );
        let groups = groups.first().map_or("", String::as_str).split(',');
        let groups = groups.map(str::trim).filter(|g| !g.is_empty());
        let user = User::authenticated(name, uid, groups.map(ToOwned::to_owned).collect());
        tokens.insert(token.clone(), Arc::new(user));
    }
    Ok(tokens)
}

/// Commas separate, but for those between quotes.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields.last_mut().expect("it begins with one").push(other),
        }
    }
    fields.iter().map(|field| field.trim().to_owned()).collect()
}

/// Reads the key, or makes it where it is not.
pub fn service_account_key(path: &Path, make: bool) -> Result<KeyPair> {
    let shown = path.display();
    let pem = match std::fs::read_to_string(path) {
        Ok(pem) => pem,
        Err(error) if make && error.kind() == std::io::ErrorKind::NotFound => {
            let pem = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem();
            write_private(path, &pem)?;
            pem
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read the signing key {shown}"));
        }
    };
    let pair = rcgen::KeyPair::from_pem_and_sign_algo(&pem, &PKCS_ECDSA_P256_SHA256)
        .with_context(|| format!("{shown} is no P-256 key in PKCS #8 PEM"))?;
    Ok(KeyPair {
        private: pair.serialize_der(),
        public: pair.der_bytes().to_vec(),
    })
}

/// Writes what only the owner may read.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options
        .open(path)
        .with_context(|| format!("cannot write {shown}"))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_says_users_and_groups() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.csv");
        std::fs::write(&path, "# people\n\nabc,jane,1,\"dev,ops\"\ndef, joe ,2\n").unwrap();
        let all = tokens(&path).unwrap();
        assert_eq!(all["abc"].name, "jane");
        assert_eq!(all["abc"].groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(all["def"].name, "joe");
        std::fs::write(&path, "abc,jane\n").unwrap();
        let error = tokens(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("line 1: give at least token,user,uid"),
            "{error}"
        );
    }

    #[test]
    fn a_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/key");
        let made = service_account_key(&path, true).unwrap();
        let read = service_account_key(&path, true).unwrap();
        assert_eq!(made.public, read.public);
        assert_eq!(made.public.len(), 65);
        let none = service_account_key(&folder.path().join("none"), false);
        assert!(none.is_err(), "a file that was named is not made");
    }
}
