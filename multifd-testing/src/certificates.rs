//! Certificates for tests, in a folder as QEMU's `tls-creds-x509` has it.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::Path;

/// An authority, whose certificates are trusted by whoever was given `ca-cert.pem`.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new authority.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of the tests");
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Fills a folder: the authority, a server's certificate for these names, and a client's.
    pub fn fill(&self, folder: &Path, names: &[&str]) {
        std::fs::create_dir_all(folder).unwrap();
        let put = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
        put("ca-cert.pem", self.pem.clone());
        for (who, names, purpose) in [
            ("server", names, ExtendedKeyUsagePurpose::ServerAuth),
            (
                "client",
                &["client"][..],
                ExtendedKeyUsagePurpose::ClientAuth,
            ),
        ] {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params
                .distinguished_name
                .push(DnType::CommonName, format!("{who} of the tests"));
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
            params.extended_key_usages = vec![purpose];
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            put(&format!("{who}-cert.pem"), certificate.pem());
            put(&format!("{who}-key.pem"), key.serialize_pem());
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
