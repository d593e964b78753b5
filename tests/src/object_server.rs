//! An S3 server on this machine (`s3s-fs`): signatures, conditions and errors are real, the
//! storage is a folder.

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const KEY: &str = "AKIAMULTIFDTESTS0000";
const SECRET: &str = "secret-of-the-tests";
/// The bucket that it has.
pub const BUCKET: &str = "vms";

/// Runs until it is dropped.
#[derive(Debug)]
pub struct ObjectServer {
    /// Where it listens, as `tcp:HOST:PORT`.
    pub address: String,
    folder: TempDir,
    _runtime: Runtime,
}

impl ObjectServer {
    /// Starts one with an empty bucket.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            let http = Builder::new(TokioExecutor::new());
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let connection = http.serve_connection(TokioIo::new(stream), service.clone());
                let connection = connection.into_owned();
                // One that breaks is its client's to tell.
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Self {
            address,
            folder,
            _runtime: runtime,
        }
    }

    /// The variables by which a client finds the server, or a proxy before it.
    pub fn variables(&self, address: Option<&str>) -> Vec<(&'static str, String)> {
        let address = address.unwrap_or(&self.address).trim_start_matches("tcp:");
        vec![
            ("AWS_ENDPOINT", format!("http://{address}")),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }

    /// The folder with the bucket's objects.
    pub fn bucket(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }
}
