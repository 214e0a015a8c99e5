//! The certificates by which the API proves itself.
//!
//! There is always one of the server's own authority, for the names and addresses by which the API
//! is reached (loopback included). An operator may configure another, of an authority that browsers
//! or a company know; then the own one answers only whom the other does not name: who asks for
//! `localhost`, and who connects to a bare address. So `skein --data-dir DIR` works on the server
//! itself with any configuration. Both are looked at again every minute: a renewed certificate is
//! taken without a restart, and a broken one leaves the former in place.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName, PrivateKeyDer};

use crate::host::{own_address, own_name};
use crate::identity::{Authority, AuthorityError, names_of};

/// Between two looks at the files.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// Names that a configuration may add.
const NAMES_MAX: usize = 100;
/// Certificates of a chain; real ones have two to four.
const CHAIN_MAX: usize = 16;

/// How the API speaks TLS.
#[derive(Clone, Debug, Default)]
pub struct ApiTls {
    /// Names and addresses besides those that are found out, for the authority's certificate.
    pub names: Vec<String>,
    /// A certificate of another authority.
    pub files: Option<CertificateFiles>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The chain, PEM, the server's certificate first.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A configured name is none.
    #[error(
        "\"{0}\" in control.api_names is neither a host name nor an address (wildcards and names \
         that end in .skein are not possible)"
    )]
    Name(String),
    /// A configuration with more names than a certificate should hold.
    #[error("control.api_names has more than {NAMES_MAX} names")]
    Names,
    /// A file cannot be used.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why, and what should be in it.
        why: String,
    },
    /// The authority cannot issue one.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl ApiTls {
    /// Finds what is wrong with the configuration before anything is started.
    pub fn check(&self) -> Result<(), CertificateError> {
        if self.names.len() > NAMES_MAX {
            return Err(CertificateError::Names);
        }
        for name in &self.names {
            canonical(name).ok_or_else(|| CertificateError::Name(name.clone()))?;
        }
        self.files.as_ref().map(load).transpose()?;
        Ok(())
    }

    /// All names of the authority's certificate, for an API that listens on `listen`.
    fn all_names(&self, listen: IpAddr, public_host: Option<&str>) -> BTreeSet<String> {
        let mut names = BTreeSet::from(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        names.insert(listen.to_string());
        names.extend(public_host.and_then(canonical));
        names.extend(self.names.iter().filter_map(|name| canonical(name)));
        if !listen.is_loopback() {
            names.extend(own_name().as_deref().and_then(canonical));
        }
        if listen.is_unspecified() {
            names.remove(&listen.to_string());
            names.insert(own_address().to_string());
        }
        names
    }
}

/// A host name or address as certificates have it. Names below `.skein` mean other processes.
fn canonical(name: &str) -> Option<String> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return (!address.is_unspecified()).then(|| address.to_string());
    }
    let name = name.to_lowercase();
    let good = DnsName::try_from(name.as_str()).is_ok() && !name.ends_with(".skein");
    good.then_some(name)
}

/// The certificates in use.
#[derive(Debug)]
pub struct ApiCertificate {
    own: RwLock<Arc<CertifiedKey>>,
    given: Option<RwLock<Arc<Given>>>,
}

/// The operator's certificate.
#[derive(Debug)]
struct Given {
    key: Arc<CertifiedKey>,
    names: BTreeSet<String>,
}

/// What the certificates are made from.
pub struct Sources {
    authority: Arc<Authority>,
    control_dir: PathBuf,
    names: BTreeSet<String>,
    files: Option<CertificateFiles>,
}

impl ApiCertificate {
    /// Makes or reads them.
    pub fn open(
        tls: &ApiTls,
        listen: SocketAddr,
        public_host: Option<&str>,
        authority: Arc<Authority>,
        control_dir: &Path,
    ) -> Result<(Arc<Self>, Sources), CertificateError> {
        tls.check()?;
        let names = tls.all_names(listen.ip(), public_host);
        let files = tls.files.clone();
        let sources = Sources { authority, control_dir: control_dir.to_owned(), names, files };
        let own = RwLock::new(sources.own()?);
        let given = sources.files.as_ref().map(load).transpose()?.map(RwLock::new);
        Ok((Arc::new(Self { own, given }), sources))
    }

    /// By which host name this machine itself should ask for the API at `listen`, so that the
    /// authority's certificate answers.
    pub fn local_host(&self, listen: SocketAddr) -> String {
        match listen.ip() {
            ip if self.given.is_some() && (ip.is_loopback() || ip.is_unspecified()) => {
                "localhost".to_owned()
            }
            ip => local_address(ip),
        }
    }

    /// Looks at the files again and again.
    pub async fn keep_fresh(self: Arc<Self>, sources: Sources) {
        let mut tick = tokio::time::interval(REFRESH_INTERVAL);
        loop {
            tick.tick().await;
            if let Err(error) = self.refresh(&sources) {
                tracing::error!(%error, "the API keeps its former certificate");
            }
        }
    }

    fn refresh(&self, sources: &Sources) -> Result<(), CertificateError> {
        let own = sources.own()?;
        if own.cert != read(&self.own).cert {
            tracing::info!("the API takes a renewed certificate of the server's authority");
            *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
        }
        let (Some(current), Some(files)) = (&self.given, &sources.files) else { return Ok(()) };
        let given = load(files)?;
        if given.key.cert != read(current).key.cert {
            tracing::info!(file = %files.certificate.display(), "the API takes a new certificate");
            *current.write().unwrap_or_else(PoisonError::into_inner) = given;
        }
        Ok(())
    }

    /// The certificate for who asks for `name`; none: an address.
    fn choose(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let Some(given) = self.given.as_ref().map(read) else { return read(&self.own) };
        let named = match name {
            None => given.names.iter().any(|name| name.parse::<IpAddr>().is_ok()),
            Some("localhost") => false,
            // One that it does not name gets it all the same: the client then says what is wrong.
            Some(_) => true,
        };
        if named { given.key.clone() } else { read(&self.own) }
    }
}

impl ResolvesServerCert for ApiCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.choose(hello.server_name()))
    }
}

impl Sources {
    fn own(&self) -> Result<Arc<CertifiedKey>, CertificateError> {
        self.authority.equip_api(&self.control_dir, &self.names)?;
        let certificate = self.control_dir.join("api.crt");
        let key = self.control_dir.join("api.key");
        Ok(load(&CertificateFiles { certificate, key })?.key.clone())
    }
}

/// A text form of an address that this machine can connect to.
pub fn local_address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn read<T>(lock: &RwLock<Arc<T>>) -> Arc<T> {
    lock.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn load(files: &CertificateFiles) -> Result<Arc<Given>, CertificateError> {
    let failed = |path: &Path, why: String| CertificateError::File { path: path.to_owned(), why };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| failed(&files.certificate, pem_error(&error)))?;
    let Some(leaf) = chain.first().filter(|_| chain.len() <= CHAIN_MAX) else {
        let why = format!("holds {} certificates; a PEM chain has 1 to {CHAIN_MAX}", chain.len());
        return Err(failed(&files.certificate, why));
    };
    let names = names_of(leaf);
    if names.is_empty() {
        let why = "names no host (it has no subject alternative names), so no client accepts it";
        return Err(failed(&files.certificate, why.to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| failed(&files.key, pem_error(&error)))?;
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            failed(&files.key, format!("is not the key of {}", files.certificate.display()))
        }
        error => failed(&files.key, error.to_string()),
    })?;
    Ok(Arc::new(Given { key: Arc::new(key), names }))
}

fn pem_error(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "holds nothing of this kind in PEM form".to_owned(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(dir: &Path) -> Arc<Authority> {
        Arc::new(Authority::open(dir).unwrap())
    }

    /// A certificate with its key for one name, of nobody that anybody knows.
    fn files(dir: &Path, name: &str) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let (certificate, key) = (dir.join("given.crt"), dir.join("given.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        CertificateFiles { certificate, key }
    }

    fn opened(dir: &Path, tls: &ApiTls, listen: &str) -> (Arc<ApiCertificate>, Sources) {
        let public = Some("skein.example.com");
        let listen = listen.parse().unwrap();
        ApiCertificate::open(tls, listen, public, authority(dir), dir).unwrap()
    }

    #[test]
    fn the_own_certificate_names_every_way_to_the_api() {
        let dir = tempfile::tempdir().unwrap();
        let tls = ApiTls { names: vec!["Ops.Example.com".into(), "10.9.8.7".into()], files: None };
        let (certificate, _) = opened(dir.path(), &tls, "0.0.0.0:0");
        let names = names_of(&certificate.choose(None).cert[0]);
        let mut expected =
            vec!["localhost", "127.0.0.1", "::1", "skein.example.com", "ops.example.com"];
        let own = own_address().to_string();
        expected.extend(["10.9.8.7", own.as_str()]);
        for name in expected {
            assert!(names.contains(name), "{name} is not in {names:?}");
        }
        assert!(!names.contains("0.0.0.0") && !names.iter().any(|name| name.ends_with(".skein")));
        assert_eq!(certificate.local_host("0.0.0.0:1".parse().unwrap()), "127.0.0.1");
    }

    #[test]
    fn names_that_are_none_or_mean_other_processes_are_refused() {
        for name in ["", "a b", "*.example.com", "https://x", "x:1", "server.skein", "0.0.0.0"] {
            let tls = ApiTls { names: vec![name.into()], files: None };
            let error = tls.check().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{name}\" in control.api_names")), "{error}");
        }
    }

    #[test]
    fn a_given_certificate_answers_its_names_and_the_own_one_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let tls = ApiTls { names: vec![], files: Some(files(dir.path(), "ops.example.com")) };
        let (certificate, _) = opened(dir.path(), &tls, "127.0.0.1:0");
        let names = |name| names_of(&certificate.choose(name).cert[0]);
        assert!(names(Some("ops.example.com")).contains("ops.example.com"));
        assert!(names(Some("localhost")).contains("localhost"));
        assert!(names(None).contains("127.0.0.1"));
        assert_eq!(certificate.local_host("127.0.0.1:1".parse().unwrap()), "localhost");
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let given = files(dir.path(), "ops.example.com");
        let tls = ApiTls { names: vec![], files: Some(given.clone()) };
        let (certificate, sources) = opened(dir.path(), &tls, "127.0.0.1:0");
        let shown = || certificate.choose(Some("ops.example.com")).cert.clone();
        let first = shown();
        files(dir.path(), "ops.example.com");
        certificate.refresh(&sources).unwrap();
        let second = shown();
        assert_ne!(first, second);
        std::fs::write(&given.key, "nonsense").unwrap();
        let error = certificate.refresh(&sources).unwrap_err().to_string();
        assert!(error.contains("given.key"), "{error}");
        assert_eq!(shown(), second);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_by_name() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut mixed = files(one.path(), "a.example.com");
        mixed.key = files(two.path(), "a.example.com").key;
        let tls = ApiTls { names: vec![], files: Some(mixed) };
        let error = tls.check().unwrap_err().to_string();
        assert!(error.contains("is not the key of"), "{error}");
    }
}
