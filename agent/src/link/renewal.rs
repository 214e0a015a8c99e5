//! Taking over a renewed certificate, and nothing else.
//!
//! The answer comes through the data process, which must never gain the power to command agents or
//! to lock them out. So the pinned command keys and authorities stay as they are, and a certificate
//! is taken only if a pinned authority signed it for our key and our id and it lives longer than
//! the one we have.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use skein_wire::signal::v1::{CommandKey, RenewReply};

use crate::identity::{Identity, IdentityError};

/// The identity with the new certificate.
pub fn accept(old: &Identity, reply: &RenewReply, now_ms: i64) -> Result<Identity, IdentityError> {
    let refuse = |why: String| Err(IdentityError::Answer(why));
    if !reply.error.is_empty() {
        return refuse(reply.error.clone());
    }
    let pinned = old.command_keys.iter().filter_map(|key| {
        let public = skein_wire::ids::hex_decode::<32>(&key.public_key_hex)?;
        Some(CommandKey { key_id: key.key_id, public_key: public.to_vec().into() })
    });
    let pinned: Vec<CommandKey> = pinned.collect();
    let trusted: Vec<bytes::Bytes> =
        old.trusted.iter().map(|der| bytes::Bytes::from(der.to_vec())).collect();
    let new = Identity::from_answer(
        old.agent_id.as_str(),
        old.key_der.clone(),
        &reply.certificate_chain_der,
        &trusted,
        &pinned,
    )?;
    if common_name(&new.chain[0]).as_deref() != Some(old.agent_id.as_str()) {
        return refuse("the certificate is for another agent".into());
    }
    if new.validity()?.not_after_ms <= old.validity()?.not_after_ms {
        return refuse("the certificate does not live longer than the present one".into());
    }
    verify(&new, now_ms).map_err(|error| IdentityError::Answer(error.to_string()))?;
    Ok(new)
}

fn verify(identity: &Identity, now_ms: i64) -> Result<(), rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in &identity.trusted {
        roots.add(authority.clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms.max(0) as u64));
    verifier.verify_client_cert(&identity.chain[0], &identity.chain[1..], now).map(drop)
}

/// The CN of a certificate's subject.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::fingerprint;

    struct Authority {
        params: rcgen::CertificateParams,
        key: rcgen::KeyPair,
        der: bytes::Bytes,
    }

    fn authority() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let der = params.clone().self_signed(&key).unwrap().der().to_vec().into();
        Authority { params, key, der }
    }

    fn issue(authority: &Authority, key_der: &[u8], name: &str, days: i64) -> RenewReply {
        let key = rcgen::KeyPair::try_from(key_der).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["x.agent.skein".into()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030 + days as i32, 1, 1);
        let issuer = rcgen::Issuer::from_params(&authority.params, &authority.key);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        RenewReply {
            certificate_chain_der: vec![leaf.der().to_vec().into(), authority.der.clone()],
            ..RenewReply::default()
        }
    }

    #[test]
    fn only_a_longer_certificate_of_ours_by_a_pinned_authority_is_taken() {
        let (ours, theirs) = (authority(), authority());
        let key = Identity::new_key().unwrap();
        let keys = [CommandKey { key_id: 1, public_key: vec![7; 32].into() }];
        let first = issue(&ours, &key, "a", 0);
        let chain = &first.certificate_chain_der;
        let trusted = [ours.der.clone()];
        let old = Identity::from_answer("a", key.clone(), chain, &trusted, &keys).unwrap();
        let now = crate::clock::wall_ms();

        let mut good = issue(&ours, &key, "a", 1);
        good.command_keys = vec![CommandKey { key_id: 2, public_key: vec![9; 32].into() }];
        good.trusted_ca_der = vec![theirs.der.clone()];
        let new = accept(&old, &good, now).unwrap();
        assert_eq!(new.command_keys, old.command_keys);
        assert_eq!(
            new.trusted.iter().map(|c| fingerprint(c)).collect::<Vec<_>>(),
            [fingerprint(&ours.der)]
        );

        let other_key = Identity::new_key().unwrap();
        for (what, reply) in [
            ("same life", issue(&ours, &key, "a", 0)),
            ("other agent", issue(&ours, &key, "b", 1)),
            ("other key", issue(&ours, &other_key, "a", 1)),
            ("other authority", issue(&theirs, &key, "a", 1)),
            ("error", RenewReply { error: "no".into(), ..RenewReply::default() }),
            ("nothing", RenewReply::default()),
        ] {
            assert!(accept(&old, &reply, now).is_err(), "{what}");
        }
    }
}
