//! The way from the edge to the router behind it: a private Unix socket, and connections to it that
//! are kept for the next request.
//!
//! Only the edge knows the socket: it lives in a folder that nobody else may enter, under a name that
//! nobody else can guess, and goes with the process.

use std::{
    fs, io,
    os::unix::{fs::DirBuilderExt, net::UnixListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderMap, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    sync::Notify,
    time::{Instant, timeout_at},
};

type Sender = SendRequest<Full<Bytes>>;

/// The body of an answer: whole, or a stream.
pub type Body = Either<Full<Bytes>, Incoming>;

/// Connections that are made without hesitation. The router has a thread for each, and short questions
/// are answered so quickly that a few are enough for all of them.
const FEW: usize = 16;

/// Most idle connections that are kept. When many rollouts have been waited for at once, their threads may
/// go.
const KEPT: usize = 64;

/// How long a request waits for one of the few before one more connection is made for it: many
/// requests at once may be waiting for rollouts.
const PATIENCE: Duration = Duration::from_millis(50);

/// The edge's end.
pub struct Upstream {
    socket: PathBuf,
    idle: Mutex<Vec<Sender>>,
    open: Arc<AtomicUsize>,
    freed: Notify,
    making: tokio::sync::Mutex<()>,
}

/// The folder of the socket; removed when dropped.
pub struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// A new folder under the first of the usual places that can be written to: a container's root
    /// file system is often read-only, its shared memory hardly ever.
    ///
    /// # Errors
    /// When none of them can be.
    pub fn new() -> io::Result<Self> {
        let name = format!("action-executor-{}", uuid::Uuid::now_v7());
        let make = |place: PathBuf| {
            let folder = place.join(&name);
            fs::DirBuilder::new().mode(0o700).create(&folder).map(|()| PrivateFolder(folder))
        };
        make(std::env::temp_dir()).or_else(|_| make("/dev/shm".into()))
    }

    /// Listens in the folder.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(&self) -> io::Result<UnixListener> {
        UnixListener::bind(self.socket())
    }

    /// The way to the listener.
    #[must_use]
    pub fn upstream(&self) -> Upstream {
        Upstream {
            socket: self.socket(),
            idle: Mutex::default(),
            open: Arc::default(),
            freed: Notify::new(),
            making: tokio::sync::Mutex::default(),
        }
    }

    fn socket(&self) -> PathBuf {
        Path::new(&self.0).join("router.sock")
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        // The process ends; a folder that stays behind is empty of secrets.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Why the router gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The socket could not be reached.
    #[error("the router's socket: {0}")]
    Socket(#[from] io::Error),
    /// The exchange broke.
    #[error("the router: {0}")]
    Exchange(#[from] hyper::Error),
}

impl Upstream {
    /// Sends a whole request and takes the answer: whole, or if it is a stream of events, as it comes. The
    /// connection of a stream is not kept.
    ///
    /// # Errors
    /// When the router cannot be reached or does not answer in HTTP.
    pub async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut sender = match self.kept_or_freed().await {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let (head, body) = sender.send_request(request).await?.into_parts();
        if is_stream(&head.headers) {
            return Ok(Response::from_parts(head, Body::Right(body)));
        }
        let body = body.collect().await?.to_bytes();
        if sender.ready().await.is_ok() {
            self.keep(sender);
        }
        Ok(Response::from_parts(head, Body::Left(Full::new(body))))
    }

    /// A connection that is there; when there are more than a few, one that becomes free in a moment.
    async fn kept_or_freed(&self) -> Option<Sender> {
        let until = Instant::now() + PATIENCE;
        loop {
            let freed = self.freed.notified();
            let kept = self.kept();
            if kept.is_some() || self.open.load(Ordering::Relaxed) < FEW {
                return kept;
            }
            timeout_at(until, freed).await.ok()?;
        }
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|sender| !sender.is_closed())
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(sender);
        }
        drop(idle);
        self.freed.notify_one();
    }

    /// Makes one more connection, and returns when the router has a thread for it.
    ///
    /// tiny_http counts its idle threads before they have woken up for what it gave them, so of several
    /// connections at once some would wait for a thread until another connection ends, which may be
    /// minutes. So one is made after the other, and proves itself with a question.
    async fn connect(&self) -> Result<Sender, UpstreamError> {
        let place = Place::taken(&self.open);
        let _one_at_a_time = self.making.lock().await;
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the router ended");
            }
            drop(place);
        });
        let mut question = Request::new(Full::default());
        *question.uri_mut() = Uri::from_static("/api/v1/healthz");
        question.headers_mut().insert(header::HOST, HeaderValue::from_static("router"));
        sender.send_request(question).await?.into_body().collect().await?;
        sender.ready().await?;
        Ok(sender)
    }
}

/// Whether it is a stream of events, which may have no end.
fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|it| it == "text/event-stream")
}

/// One of the open connections, counted from before it is made until it has ended.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn taken(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Place(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
