//! The Ed25519 keys that sign commands, in one private file. The newest signs; all are published
//! at enrolment and renewal, so that a rotation reaches agents before the old key goes.

use std::fs;
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use serde::{Deserialize, Serialize};
use skein_wire::command::Signer;
use skein_wire::signal::v1::CommandKey;

use crate::clock;
use crate::files::write_atomic;

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}; restore it from a backup, or remove it and enrol all agents anew")]
pub struct CommandKeysError {
    path: PathBuf,
    why: String,
}

#[derive(Serialize, Deserialize)]
struct KeyFile {
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    key_id: u32,
    created_ms: i64,
    /// PKCS#8, hex.
    pkcs8: String,
}

/// The keys, loaded.
#[derive(Debug)]
pub struct CommandKeys {
    signer: Signer,
    public: Vec<CommandKey>,
}

impl CommandKeys {
    /// Loads the keys of a control folder, or makes the first.
    pub fn open(control_dir: &Path) -> Result<Self, CommandKeysError> {
        let path = control_dir.join("command.key");
        let failed = |why: String| CommandKeysError { path: path.clone(), why };
        if !path.exists() {
            let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                .map_err(|error| failed(error.to_string()))?;
            let pkcs8 = skein_wire::ids::hex_encode(pkcs8.as_ref());
            let key = StoredKey { key_id: 1, created_ms: clock::now_ms(), pkcs8 };
            let text = serde_json::to_vec_pretty(&KeyFile { keys: vec![key] })
                .map_err(|error| failed(error.to_string()))?;
            write_atomic(&path, &text, 0o600).map_err(|error| failed(error.to_string()))?;
        }
        let text = fs::read(&path).map_err(|error| failed(error.to_string()))?;
        let file: KeyFile =
            serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        let mut signers = Vec::new();
        for key in &file.keys {
            let pkcs8 = unhex(&key.pkcs8).ok_or_else(|| failed("a key is not hex".into()))?;
            let signer = Signer::from_pkcs8(key.key_id, &pkcs8)
                .map_err(|error| failed(error.to_string()))?;
            signers.push(signer);
        }
        let public = signers.iter().map(Signer::public).collect();
        let signer = signers.pop().ok_or_else(|| failed("holds no key".into()))?;
        Ok(Self { signer, public })
    }

    /// The key that signs.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// What agents pin.
    pub fn public(&self) -> &[CommandKey] {
        &self.public
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| (text.as_bytes()[at] as char).to_digit(16);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| Some((digit(at)? * 16 + digit(at + 1)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_outlives_restarts_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let first = CommandKeys::open(folder.path()).unwrap();
        let second = CommandKeys::open(folder.path()).unwrap();
        assert_eq!(first.public(), second.public());
        let mode = fs::metadata(folder.path().join("command.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
