//! Whom the client believes to be the server: certificates of a file, of the system, or both; and
//! what a failed handshake means in words that name the remedy.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, RootCertStore};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::error::CliError;

/// A file of authorities larger than this is none.
const CA_BYTES_MAX: u64 = 4 << 20;

/// Whose certificates are accepted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trust {
    /// PEM file with authorities.
    pub file: Option<PathBuf>,
    /// Those of the system too.
    pub system: bool,
}

impl Trust {
    /// Those of the system only.
    pub fn of_system() -> Self {
        Self { file: None, system: true }
    }

    /// Those of a file only.
    pub fn of_file(path: impl Into<PathBuf>) -> Self {
        Self { file: Some(path.into()), system: false }
    }

    /// What the HTTP client needs; reads the files.
    pub fn tls(&self) -> Result<TlsConfig, CliError> {
        let mut roots = Vec::new();
        if let Some(path) = &self.file {
            roots.extend(authorities(path)?);
        }
        if self.system {
            // What cannot be read is missed when a certificate needs it, and that is said then.
            roots.extend(rustls_native_certs::load_native_certs().certs);
        }
        let roots = roots.iter().map(|root| Certificate::from_der(root).to_owned());
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        Ok(TlsConfig::builder()
            .root_certs(RootCerts::from(roots))
            .unversioned_rustls_crypto_provider(provider)
            .build())
    }

    /// What a failed handshake means.
    pub fn explain(&self, error: &rustls::Error) -> String {
        use CertificateError as Bad;
        match error {
            rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
                format!("{}.\n  {UNKNOWN_REMEDY}", self.unknown())
            }
            rustls::Error::InvalidCertificate(Bad::NotValidForNameContext {
                expected,
                presented,
            }) => {
                let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
                let (asked, names) = (expected.to_str(), names.join(", "));
                format!("its certificate is not for {asked} but for {names}.\n  {NAME_REMEDY}")
            }
            rustls::Error::InvalidCertificate(
                bad @ (Bad::Expired | Bad::ExpiredContext { .. }),
            ) => {
                format!("{bad}.\n  Renew it on the server, and see that both clocks are right.")
            }
            rustls::Error::InvalidCertificate(bad) => bad.to_string(),
            rustls::Error::InvalidMessage(_) => {
                "it does not speak TLS.\n  A server without control.api_tls speaks http://, on \
                 127.0.0.1 only."
                    .to_owned()
            }
            other => other.to_string(),
        }
    }

    fn unknown(&self) -> String {
        match &self.file {
            Some(path) => {
                format!("its certificate is of another authority than {}", path.display())
            }
            None => "its certificate is of an authority that this system does not know".to_owned(),
        }
    }
}

const UNKNOWN_REMEDY: &str = "\
A Skein server's own authority is DIR/control/ca.crt there: copy that file here and name it by --ca \
FILE or SKEIN_CA.";

/// `DnsName("x")` and `IpAddress(y)`, as a certificate's names are reported, without the wrapping.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"')
}

const NAME_REMEDY: &str = "\
Use a name that it has, or add this one to control.api_names in the server's server.toml.";

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let shown = path.display();
    let metadata =
        std::fs::metadata(path).map_err(CliError::io(format!("cannot read the --ca {shown}")))?;
    if metadata.len() > CA_BYTES_MAX {
        return Err(CliError::Local(format!("{shown} is over 4 MiB: that is no file for --ca")));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found = found.map_err(|error| {
        CliError::Local(format!("cannot read certificates of {shown}: {error}"))
    })?;
    let (usable, _) = RootCertStore::empty().add_parsable_certificates(found.iter().cloned());
    if usable == 0 {
        return Err(CliError::Local(format!(
            "{shown} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let error = Trust::of_file(&path).tls().unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("--ca"), "{error}");
        std::fs::write(&path, "nothing").unwrap();
        let error = Trust::of_file(&path).tls().unwrap_err().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
    }

    #[test]
    fn names_of_certificates_are_shown_bare() {
        let names = ["DnsName(\"localhost\")", "IpAddress(127.0.0.1)", "other"];
        assert_eq!(names.map(bare), ["localhost", "127.0.0.1", "other"]);
    }

    #[test]
    fn the_systems_authorities_need_no_file() {
        assert!(Trust::of_system().tls().is_ok());
    }
}
