//! Unix sockets that the agent listens on: bound over what a dead agent left, never over a file
//! or a living agent.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use metrics::counter;
use skein_observe::names;
use tokio::net::UnixListener;

use crate::spool::Input;

/// How long a path that cannot be bound rests before it is tried again: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Binds `path` with `mode`. A socket that nobody listens on is removed first.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let kind = io::ErrorKind::AlreadyExists;
            return Err(io::Error::new(kind, "there is a file that is not a socket; remove it"));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                let kind = io::ErrorKind::AddrInUse;
                return Err(io::Error::new(kind, "another agent listens there; stop it first"));
            }
            // Nobody listens: what a killed agent left.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Binds, and tries again for as long as it takes: one bad path must not cost the others.
pub async fn bind_patiently(input: Input, path: &Path, mode: u32) -> UnixListener {
    let mut rest = RETRY.0;
    loop {
        match bind(path, mode) {
            Ok(listener) => {
                tracing::info!(path = %path.display(), "listening");
                return listener;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot listen; trying again");
                failed(input, "bind");
            }
        }
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(RETRY.1);
    }
}

/// Counts an error of an input.
pub fn failed(input: Input, error: &'static str) {
    counter!(names::AGENT_INPUT_ERRORS, "input" => input.as_str(), "error" => error).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime(test: impl FnOnce(&Path)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        test(tempfile::tempdir().unwrap().path());
    }

    /// agent.md 1.1: unlink a stale file at start, mode wide enough for other users' collectors.
    #[test]
    fn a_stale_socket_is_replaced() {
        in_runtime(|dir| {
            let path = dir.join("sub/ipc.state.report");
            drop(bind(&path, 0o600).unwrap());
            let listener = bind(&path, 0o666).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
            assert!(bind(&path, 0o666).unwrap_err().to_string().contains("another agent"));
            drop(listener);
        });
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        in_runtime(|dir| {
            let path = dir.join("precious");
            std::fs::write(&path, "data").unwrap();
            assert!(bind(&path, 0o666).unwrap_err().to_string().contains("not a socket"));
            std::os::unix::fs::symlink(dir.join("gone"), dir.join("link")).unwrap();
            assert!(bind(&dir.join("link"), 0o666).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), b"data");
        });
    }
}
