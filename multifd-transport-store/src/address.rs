//! Where a store is, as users write it.

use crate::StoreError;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, local::LocalFileSystem, memory::InMemory};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// A store's address: a folder, `s3://bucket/prefix`, `gs://bucket/prefix`,
/// `az://container/prefix`, or `memory:` for one that ends with the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreAddress(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Folder(PathBuf),
    Memory,
    Cloud {
        scheme: Scheme,
        url: String,
        prefix: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    S3,
    Google,
    Azure,
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Folder(path) => write!(f, "{}", path.display()),
            Kind::Memory => f.write_str("memory:"),
            Kind::Cloud { url, prefix, .. } if prefix.is_empty() => f.write_str(url),
            Kind::Cloud { url, prefix, .. } => write!(f, "{url}/{prefix}"),
        }
    }
}

impl FromStr for StoreAddress {
    type Err = StoreError;

    fn from_str(address: &str) -> Result<Self, StoreError> {
        let refused = |why: &str| StoreError::Address {
            address: address.into(),
            why: why.into(),
        };
        if address == "memory:" {
            return Ok(Self(Kind::Memory));
        }
        let Some((scheme, rest)) = address.split_once("://") else {
            if address.is_empty() {
                return Err(refused("it is empty"));
            }
            return Ok(Self(Kind::Folder(address.into())));
        };
        let scheme = match scheme {
            "s3" | "s3a" => Scheme::S3,
            "gs" => Scheme::Google,
            "az" | "azure" => Scheme::Azure,
            "file" => return Ok(Self(Kind::Folder(rest.into()))),
            _ => {
                let known = "a folder, s3://, gs://, az:// and memory: are known";
                return Err(refused(known));
            }
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(refused("it names no bucket"));
        }
        let name = address.split_once("://").map_or("", |(scheme, _)| scheme);
        Ok(Self(Kind::Cloud {
            scheme,
            url: format!("{name}://{bucket}"),
            prefix: prefix.trim_matches('/').into(),
        }))
    }
}

/// What an address leads to.
pub(crate) struct Place {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) prefix: ObjectPath,
    /// The folder, if it is one.
    pub(crate) folder: Option<PathBuf>,
}

impl StoreAddress {
    /// The folder, if it is one.
    pub fn folder(&self) -> Option<&std::path::Path> {
        match &self.0 {
            Kind::Folder(path) => Some(path),
            _ => None,
        }
    }

    /// Connects. A folder is made if `create` says so.
    pub(crate) fn connect(
        &self,
        create: bool,
        retry: Option<Duration>,
    ) -> Result<Place, StoreError> {
        let failed = |cause| StoreError::Storage {
            store: self.to_string(),
            doing: "opening",
            object: "the store".into(),
            cause: Box::new(cause),
        };
        match &self.0 {
            Kind::Folder(path) => {
                let at = |doing| {
                    move |cause| StoreError::Path {
                        path: path.clone(),
                        doing,
                        cause,
                    }
                };
                if create {
                    std::fs::create_dir_all(path).map_err(at("creating the folder"))?;
                } else if !path.is_dir() {
                    return Err(StoreError::NoStore {
                        store: self.to_string(),
                    });
                }
                // Links in the path are followed once, here.
                let path = path.canonicalize().map_err(at("finding the folder"))?;
                let objects = LocalFileSystem::new_with_prefix(&path).map_err(failed)?;
                Ok(Place {
                    objects: Arc::new(objects.with_fsync(true)),
                    prefix: ObjectPath::default(),
                    folder: Some(path),
                })
            }
            Kind::Memory => Ok(Place {
                objects: Arc::new(InMemory::new()),
                prefix: ObjectPath::default(),
                folder: None,
            }),
            Kind::Cloud {
                scheme,
                url,
                prefix,
            } => Ok(Place {
                objects: cloud(*scheme, url, retry).map_err(|error| match error {
                    Some(cause) => failed(cause),
                    None => StoreError::Address {
                        address: self.to_string(),
                        why: "this build knows folders only (feature `cloud`)".into(),
                    },
                })?,
                prefix: ObjectPath::from(prefix.as_str()),
                folder: None,
            }),
        }
    }
}

/// A bucket, with credentials and endpoint from the environment. `None` is a build without.
#[cfg(feature = "cloud")]
fn cloud(
    scheme: Scheme,
    url: &str,
    retry: Option<Duration>,
) -> Result<Arc<dyn ObjectStore>, Option<object_store::Error>> {
    let mut retries = object_store::RetryConfig::default();
    retries.retry_timeout = retry.unwrap_or(retries.retry_timeout);
    // The time alone says when to give up.
    retries.max_retries = usize::MAX;
    // Another one may be installed: it serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(match scheme {
        Scheme::S3 => {
            let builder = object_store::aws::AmazonS3Builder::from_env()
                .with_url(url)
                .with_retry(retries);
            Arc::new(builder.build()?)
        }
        Scheme::Google => {
            let builder = object_store::gcp::GoogleCloudStorageBuilder::from_env()
                .with_url(url)
                .with_retry(retries);
            Arc::new(builder.build()?)
        }
        Scheme::Azure => {
            let builder = object_store::azure::MicrosoftAzureBuilder::from_env()
                .with_url(url)
                .with_retry(retries);
            Arc::new(builder.build()?)
        }
    })
}

#[cfg(not(feature = "cloud"))]
fn cloud(
    _: Scheme,
    _: &str,
    _: Option<Duration>,
) -> Result<Arc<dyn ObjectStore>, Option<object_store::Error>> {
    Err(None)
}

/// A snapshot in a store: `store:ADDRESS#NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotAddress {
    /// The store.
    pub store: StoreAddress,
    /// The snapshot's name.
    pub name: String,
}

impl SnapshotAddress {
    /// Whether a text is meant as one: it begins with `store:`.
    pub fn is_one(text: &str) -> bool {
        text.starts_with("store:")
    }
}

impl fmt::Display for SnapshotAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store:{}#{}", self.store, self.name)
    }
}

impl FromStr for SnapshotAddress {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let refused = |why: &str| StoreError::Address {
            address: text.into(),
            why: why.into(),
        };
        let rest = text.strip_prefix("store:");
        let rest = rest.ok_or_else(|| refused("a snapshot in a store is store:ADDRESS#NAME"))?;
        let (store, name) = rest
            .rsplit_once('#')
            .ok_or_else(|| refused("it names no snapshot: store:ADDRESS#NAME"))?;
        crate::name::check_snapshot_name(name)?;
        Ok(Self {
            store: store.parse()?,
            name: name.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_folders_buckets_or_memory() {
        for (text, shown) in [
            ("/var/lib/vm", "/var/lib/vm"),
            ("file:///var/lib/vm", "/var/lib/vm"),
            ("relative", "relative"),
            ("memory:", "memory:"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("gs://bucket/a", "gs://bucket/a"),
            ("az://container/a", "az://container/a"),
        ] {
            let address: StoreAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
        }
        for bad in ["", "s3://", "s3:///x", "ftp://host/x"] {
            assert!(bad.parse::<StoreAddress>().is_err(), "{bad}");
        }
        let address: SnapshotAddress = "store:s3://b/p#vm:1".parse().unwrap();
        assert_eq!(address.to_string(), "store:s3://b/p#vm:1");
        assert_eq!(address.name, "vm:1");
        for bad in ["store:/x", "/x#a", "store:/x#", "store:/x#a/b", "store:#a"] {
            assert!(bad.parse::<SnapshotAddress>().is_err(), "{bad}");
        }
    }
}
