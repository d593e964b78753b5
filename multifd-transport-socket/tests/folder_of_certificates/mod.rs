//! Certificates as QEMU's `tls-creds-x509` has them in a folder.
#![cfg(feature = "tls")]

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::Path;

/// An authority's certificate, one of its server `localhost`, and one of a client.
pub(crate) fn fill(folder: &Path) {
    let put = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    put("ca-cert.pem", params.self_signed(&key).unwrap().pem());
    let authority = Issuer::new(params, key);
    for (who, name, purpose) in [
        ("server", "localhost", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", "client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &authority).unwrap();
        put(&format!("{who}-cert.pem"), certificate.pem());
        put(&format!("{who}-key.pem"), key.serialize_pem());
    }
}
