//! The engine tiny-http: the only file that knows the crate.
//!
//! tiny_http trusts its peer (a Content-Length of 10^12 ends its process, a stalled body holds a thread), so
//! it listens on a private Unix socket and gets only requests that the server has read. What the server
//! knows of a request does not cross the socket: one internal header holds a random number of 128 bits, under
//! which a table holds the [`RequestInfo`], taken out once.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, Uri,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    contract::error::{ActionError, Code},
    executor::reply::Reply,
    http::{
        dispatch::{Service, handler_panicked},
        message::{Body, FullRequest, RequestInfo},
    },
};

/// Holds the number of a request's [`RequestInfo`], and nothing on a connection's first request.
const NUMBER: &str = "x-request-number";

/// Threads of the handler; they only read requests and pass them to the runtime.
const THREADS: usize = 2;

/// Connections that are opened without waiting. tiny_http has a thread for each.
const MAX_IMMEDIATE_CONNECTIONS: usize = 16;

/// Maximum number of idle connections.
const MAX_IDLE_CONNECTIONS: usize = 64;

/// How long a request waits for a connection to become idle before one more than [`MAX_IMMEDIATE_CONNECTIONS`] is
/// opened for it.
const IDLE_TIMEOUT: Duration = Duration::from_millis(50);

/// How long a request waits where no more may be opened.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Descriptors of a connection: one here, and two of tiny_http, which accepts no more where there is none left.
const DESCRIPTORS_PER_CONNECTION: usize = 3;

/// Which part of all descriptors they may take; a request in progress has one to the cluster, too.
const DESCRIPTORS_SHARE: usize = 4;

/// Connections beyond these, on which only health checks are answered.
const HEALTH_CONNECTIONS: usize = 4;

/// The beginning of the name of a socket's directory; a UUID follows, and nothing else.
const DIRECTORY_PREFIX: &str = "action-executor-tiny-";

/// The only file in that directory. The path of a socket is at most 107 bytes long, so both names are short.
const SOCKET: &str = "s";

/// Attempts to create the directory: the cleanup of another server may remove one before it is locked.
const DIRECTORY_ATTEMPTS: usize = 8;

/// Headers that belong to a connection, and are not forwarded.
const CONNECTION_HEADERS: [HeaderName; 5] =
    [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::DATE, header::SERVER];

/// What is known of a request besides what crosses the socket.
struct PendingRequest {
    /// The header as the client sent it, which tiny_http could hold only in part.
    headers: HeaderMap,
    info: RequestInfo,
    /// Ends when nobody waits for the response any more, which tiny_http would notice at its next write.
    gone: oneshot::Receiver<()>,
}

type Table = Arc<Mutex<HashMap<u128, PendingRequest>>>;
type Sender = SendRequest<Full<Bytes>>;

/// The server's end of the socket.
pub(crate) struct TinyHttp {
    directory: SocketDir,
    service: Service,
    table: Table,
    random: SystemRandom,
    idle: Mutex<Vec<Sender>>,
    open: Arc<AtomicUsize>,
    became_idle: Notify,
    opening: tokio::sync::Mutex<()>,
    /// The connections that may still be opened, and those of health checks.
    slots: Arc<Semaphore>,
    health_slots: Arc<Semaphore>,
}

/// A connection that a request has for itself.
struct Lent {
    sender: Sender,
    /// Whether it may be kept for other requests.
    is_shared: bool,
}

impl TinyHttp {
    /// Starts a server of tiny_http, which dispatches to this service, with a part of so many descriptors.
    ///
    /// # Errors
    /// [`Code::Configuration`] if no directory can be written, [`Code::Internal`] if no thread can be started.
    pub(crate) fn start(service: &Service, descriptors: usize) -> Result<Self, ActionError> {
        let slots = descriptors / DESCRIPTORS_SHARE / DESCRIPTORS_PER_CONNECTION;
        let tiny_http = TinyHttp {
            directory: SocketDir::new(&std::env::temp_dir())?,
            service: service.clone(),
            table: Table::default(),
            random: SystemRandom::new(),
            idle: Mutex::default(),
            open: Arc::default(),
            became_idle: Notify::new(),
            opening: tokio::sync::Mutex::default(),
            slots: Arc::new(Semaphore::new(slots.clamp(THREADS, Semaphore::MAX_PERMITS))),
            health_slots: Arc::new(Semaphore::new(HEALTH_CONNECTIONS)),
        };
        tiny_http.listen().map_err(|error| {
            ActionError::new(Code::Internal, format!("the engine tiny-http: {error}"))
        })?;
        Ok(tiny_http)
    }

    /// Has tiny_http listen, in place of one that has stopped to. Connections of that one stay as they are.
    fn listen(&self) -> io::Result<()> {
        let socket = self.directory.socket();
        if let Err(error) = fs::remove_file(&socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let server = tiny_http::Server::from_listener(UnixListener::bind(socket)?, None);
        let server = Arc::new(server.map_err(io::Error::other)?);
        for number in 0..THREADS {
            let (server, service) = (server.clone(), self.service.clone());
            let (table, runtime) = (self.table.clone(), Handle::current());
            let handler = move || {
                for request in server.incoming_requests() {
                    handle(request, &service, &table, &runtime);
                }
            };
            thread::Builder::new().name(format!("tiny-http-{number}")).spawn(handler)?;
        }
        Ok(())
    }

    /// Has a request answered. The connection of a stream is not kept.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if no connection can be opened, [`Code::Internal`] if the exchange fails.
    pub(crate) async fn exchange(
        &self,
        request: FullRequest,
        info: RequestInfo,
    ) -> Result<Response<Body>, ActionError> {
        let is_head = request.method() == Method::HEAD;
        let is_health_check = info.path.is_health_check(request.method().as_str());
        let (head, body) = request.into_parts();
        let (waits, gone) = oneshot::channel();
        let known = PendingRequest { headers: head.headers, info, gone };
        let entry = PendingEntry::new(&self.table, &self.random, known)?;
        let request = forwarded(head.method, &head.uri, body, entry.number);
        let Lent { mut sender, is_shared } = self.connection(is_health_check).await?;
        let (mut head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        for name in &CONNECTION_HEADERS {
            head.headers.remove(name);
        }
        if head.headers.get(header::CONTENT_TYPE).is_some_and(|it| it == "text/event-stream") {
            return Ok(Response::from_parts(head, parts(body, waits)));
        }
        // The response to HEAD has the length of that to GET, and no body.
        if !is_head {
            head.headers.remove(header::CONTENT_LENGTH);
        }
        let body = body.collect().await.map_err(broken)?.to_bytes();
        if is_shared && sender.ready().await.is_ok() {
            self.keep(sender);
        }
        Ok(Response::from_parts(head, Body::Full(body)))
    }

    /// A connection: an idle one, a new one where one more may be opened, or the next that becomes idle.
    async fn connection(&self, is_health_check: bool) -> Result<Lent, ActionError> {
        if let Some(sender) = self.idle_connection().await {
            return Ok(Lent { sender, is_shared: true });
        }
        if is_health_check
            && self.slots.available_permits() == 0
            && let Ok(slot) = self.health_slots.clone().try_acquire_owned()
        {
            return Ok(Lent { sender: self.connect(slot).await?, is_shared: false });
        }
        let until = Instant::now() + BUSY_TIMEOUT;
        loop {
            let became_idle = self.became_idle.notified();
            if let Some(sender) = self.take_idle() {
                return Ok(Lent { sender, is_shared: true });
            }
            tokio::select! {
                Ok(slot) = self.slots.clone().acquire_owned() => {
                    return Ok(Lent { sender: self.connect(slot).await?, is_shared: true });
                }
                () = became_idle => {}
                () = sleep_until(until) => return Err(overloaded()),
            }
        }
    }

    /// An idle connection; if many are open, one that becomes idle in a moment.
    async fn idle_connection(&self) -> Option<Sender> {
        let until = Instant::now() + IDLE_TIMEOUT;
        loop {
            let became_idle = self.became_idle.notified();
            let sender = self.take_idle();
            if sender.is_some() || self.open.load(Ordering::Relaxed) < MAX_IMMEDIATE_CONNECTIONS {
                return sender;
            }
            timeout_at(until, became_idle).await.ok()?;
        }
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = lock(&self.idle);
        std::iter::from_fn(|| idle.pop()).find(|sender| !sender.is_closed())
    }

    fn keep(&self, sender: Sender) {
        let mut idle = lock(&self.idle);
        if idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(sender);
        }
        drop(idle);
        self.became_idle.notify_one();
    }

    /// Opens a connection, and returns when tiny_http has a thread for it.
    ///
    /// tiny_http counts its idle threads before they have woken up for what it gave them, so of several
    /// connections at once some would wait for a thread until another connection ends, which may take
    /// minutes. So they are opened one after the other, and each proves itself with an empty request.
    async fn connect(&self, slot: OwnedSemaphorePermit) -> Result<Sender, ActionError> {
        let open = Open::new(&self.open, slot);
        let _one_at_a_time = self.opening.lock().await;
        let socket = self.directory.socket();
        let mut stream = UnixStream::connect(&socket).await;
        // Once there was no descriptor for a connection, tiny_http accepts none any more. A listener that could not
        // start leaves no socket behind.
        let is_gone = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
        };
        if stream.as_ref().is_err_and(is_gone) && self.listen().is_ok() {
            stream = UnixStream::connect(&socket).await;
        }
        // There is no descriptor for one more socket, and nothing was sent.
        let failed = |error: &dyn std::error::Error| {
            tracing::warn!(%error, "no connection to tiny_http");
            overloaded()
        };
        let stream = stream.map_err(|error| failed(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to tiny_http ended");
            }
            drop(open);
        });
        let mut proof = Request::new(Full::default());
        proof.headers_mut().insert(header::HOST, HeaderValue::from_static("tiny-http"));
        let response = sender.send_request(proof).await.map_err(|error| failed(&error))?;
        response.into_body().collect().await.map_err(|error| failed(&error))?;
        sender.ready().await.map_err(|error| failed(&error))?;
        Ok(sender)
    }
}

fn overloaded() -> ActionError {
    ActionError::new(Code::Overloaded, "too many requests are in progress")
        .with_retry_after(Some(Duration::from_secs(1)))
}

fn broken(error: hyper::Error) -> ActionError {
    ActionError::new(Code::Internal, format!("tiny_http: {error}"))
}

/// One of the open connections, counted from before it is opened until it has ended.
struct Open {
    open: Arc<AtomicUsize>,
    _slot: OwnedSemaphorePermit,
}

impl Open {
    fn new(open: &Arc<AtomicUsize>, slot: OwnedSemaphorePermit) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Open { open: open.clone(), _slot: slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A number in the table; removed when dropped, if the handler has not taken it out.
struct PendingEntry<'a> {
    table: &'a Table,
    number: u128,
}

impl<'a> PendingEntry<'a> {
    fn new(
        table: &'a Table,
        random: &SystemRandom,
        known: PendingRequest,
    ) -> Result<Self, ActionError> {
        let mut bytes = [0; 16];
        let no_random = |_| ActionError::new(Code::Internal, "the system has no random numbers");
        random.fill(&mut bytes).map_err(no_random)?;
        let number = u128::from_ne_bytes(bytes);
        lock(table).insert(number, known);
        Ok(PendingEntry { table, number })
    }
}

impl Drop for PendingEntry<'_> {
    fn drop(&mut self) {
        lock(self.table).remove(&self.number);
    }
}

/// The request as it crosses the socket: its method, its path, its body, and the number of the rest.
fn forwarded(method: Method, uri: &Uri, body: Bytes, number: u128) -> Request<Full<Bytes>> {
    let mut forwarded = Request::new(Full::new(body));
    *forwarded.method_mut() = method;
    *forwarded.uri_mut() = uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    let headers = forwarded.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("tiny-http"));
    if let Ok(number) = HeaderValue::try_from(format!("{number:032x}")) {
        headers.insert(HeaderName::from_static(NUMBER), number);
    }
    forwarded
}

/// The parts of a stream as they come; `waits` is dropped with its client.
fn parts(mut body: Incoming, waits: oneshot::Sender<()>) -> Body {
    let (sender, parts) = mpsc::channel(1);
    tokio::spawn(async move {
        let _waits = waits;
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = sender.closed() => return,
            };
            let Some(Ok(frame)) = frame else { return };
            let Ok(part) = frame.into_data() else { continue };
            if sender.send(part).await.is_err() {
                return;
            }
        }
    });
    Body::Stream(parts)
}

/// Handles one request on a thread of tiny_http.
fn handle(mut request: tiny_http::Request, service: &Service, table: &Table, runtime: &Handle) {
    let number = number(&request);
    let mut read = match read(&mut request) {
        Ok(read) => read,
        Err(error) => {
            let error = ActionError::new(Code::Internal, format!("tiny_http: {error}"));
            return log_send_error(send(request, Reply::from(error).into()));
        }
    };
    let Some(known) = number.and_then(|number| lock(table).remove(&number)) else {
        // A connection proves itself.
        return log_send_error(send(request, Response::new(Body::Full(Bytes::new()))));
    };
    let PendingRequest { headers, info, gone } = known;
    *read.headers_mut() = headers;
    let service = service.clone();
    runtime.spawn(async move {
        let work = tokio::spawn(async move { service.dispatch(read, info).await });
        let response =
            work.await.unwrap_or_else(|panic| Reply::from(handler_panicked(&panic)).into());
        let response = response.map(|body| end_with_client(gone, body));
        match response.body() {
            Body::Full(_) => log_send_error(send(request, response)),
            // A thread waits for its parts.
            Body::Stream(_) => {
                spawn_blocking(|| log_send_error(send(request, response)));
            }
        }
    });
}

/// The body; of a stream the parts until its client is gone.
fn end_with_client(gone: oneshot::Receiver<()>, body: Body) -> Body {
    let Body::Stream(mut parts) = body else { return body };
    let (sender, wanted) = mpsc::channel(1);
    tokio::spawn(async move {
        let forward = async {
            while let Some(part) = parts.recv().await
                && sender.send(part).await.is_ok()
            {}
        };
        tokio::select! {
            () = forward => {}
            _ = gone => {}
        }
    });
    Body::Stream(wanted)
}

fn number(request: &tiny_http::Request) -> Option<u128> {
    let header = request.headers().iter().find(|it| it.field.equiv(NUMBER))?;
    u128::from_str_radix(header.value.as_str(), 16).ok()
}

/// The request in the types of the dispatcher, without its header.
fn read(request: &mut tiny_http::Request) -> io::Result<FullRequest> {
    let mut body = Vec::new();
    request.as_reader().read_to_end(&mut body)?;
    let read = Request::builder().method(request.method().as_str()).uri(request.url());
    read.body(body.into()).map_err(io::Error::other)
}

fn send(request: tiny_http::Request, response: Response<Body>) -> io::Result<()> {
    let (head, body) = response.into_parts();
    let headers = head.headers.iter().filter_map(|(name, value)| {
        tiny_http::Header::from_bytes(name.as_str().as_bytes(), value.as_bytes()).ok()
    });
    let status = head.status.as_u16();
    match body {
        Body::Full(body) => {
            let length = body.len();
            let is_head = *request.method() == tiny_http::Method::Head;
            let (headers, body) = (headers.collect(), if is_head { &[] } else { &*body });
            request.respond(tiny_http::Response::new(
                status.into(),
                headers,
                body,
                Some(length),
                None,
            ))
        }
        Body::Stream(parts) => stream(&mut request.into_writer(), status, headers, parts),
    }
}

/// Sends parts as they come, in chunks (RFC 9112, section 7.1). tiny_http would keep small ones until
/// there are 8 KiB of them.
fn stream(
    to: &mut dyn Write,
    status: u16,
    headers: impl Iterator<Item = tiny_http::Header>,
    mut parts: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    write!(to, "HTTP/1.1 {status} \r\nTransfer-Encoding: chunked\r\n")?;
    for header in headers {
        write!(to, "{}: {}\r\n", header.field, header.value)?;
    }
    write!(to, "\r\n")?;
    to.flush()?;
    while let Some(part) = parts.blocking_recv() {
        // An empty chunk would be the last one.
        if part.is_empty() {
            continue;
        }
        write!(to, "{:x}\r\n", part.len())?;
        to.write_all(&part)?;
        write!(to, "\r\n")?;
        to.flush()?;
    }
    write!(to, "0\r\n\r\n")?;
    to.flush()
}

fn log_send_error(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "a response of tiny_http was not sent");
    }
}

/// The directory of the socket, which no other user may enter. It is locked while its server runs and
/// removed when dropped.
struct SocketDir {
    path: PathBuf,
    _lock: File,
}

impl SocketDir {
    /// A new directory in `parent`, from which the directories of killed servers are removed.
    fn new(parent: &Path) -> Result<Self, ActionError> {
        let mut made = Self::create(parent);
        for _ in 1..DIRECTORY_ATTEMPTS {
            // Before it was locked, another server has taken it for that of a killed one.
            if !made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
            made = Self::create(parent);
        }
        let directory = made.map_err(|error| {
            let detail = format!(
                "the engine tiny-http cannot create a directory for its socket in {}: {error}",
                parent.display()
            );
            ActionError::new(Code::Configuration, detail).with_hint(
                "set TMPDIR to a directory that can be written, in a container mount one at /tmp, or leave out \
                 --engine tiny-http",
            )
        })?;
        if let Err(error) = directory.remove_abandoned(parent) {
            tracing::debug!(%error, "directories of killed servers were not removed");
        }
        Ok(directory)
    }

    fn create(parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!("{DIRECTORY_PREFIX}{}", uuid::Uuid::now_v7().simple()));
        DirBuilder::new().mode(0o700).create(&path)?;
        let removed = |_| io::Error::from(io::ErrorKind::WouldBlock);
        let lock = File::open(&path).map_err(removed)?;
        lock.try_lock().map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        // It may have been removed before it was locked.
        fs::metadata(&path).map_err(removed)?;
        Ok(SocketDir { path, _lock: lock })
    }

    fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Removes each socket's directory of this user that no running server has locked: the socket and the directory,
    /// and nothing that is not empty after that.
    fn remove_abandoned(&self, parent: &Path) -> io::Result<()> {
        let user = fs::metadata(&self.path)?.uid();
        for entry in fs::read_dir(parent)?.filter_map(Result::ok) {
            let is_directory = entry.file_type().is_ok_and(|it| it.is_dir())
                && entry.metadata().is_ok_and(|it| it.uid() == user)
                && is_socket_dir(&entry.file_name().to_string_lossy());
            if !is_directory || entry.path() == self.path {
                continue;
            }
            let Ok(directory) = File::open(entry.path()) else { continue };
            match directory.try_lock() {
                // A directory that holds anything else is not the server's.
                Ok(()) => drop(remove(&entry.path())),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        // The process ends; what stays is removed by the next server.
        let _ = remove(&self.path);
    }
}

fn is_socket_dir(name: &str) -> bool {
    name.strip_prefix(DIRECTORY_PREFIX).is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
}

/// Removes a socket and its directory.
fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir(directory),
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::routes::MatchedPath;

    fn parent(name: &str) -> PathBuf {
        let parent = std::env::temp_dir().join(format!("tiny-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&parent).expect("is made");
        parent
    }

    #[test]
    fn the_directory_of_a_killed_server_is_removed_and_that_of_a_living_one_stays() {
        let parent = parent("directories");
        let directory = |name: &str, file: &str| {
            let directory = parent.join(name);
            fs::create_dir(&directory).expect("is made");
            fs::write(directory.join(file), "").expect("is written");
            directory
        };
        let id = uuid::Uuid::now_v7();
        let killed = directory(&format!("{DIRECTORY_PREFIX}{id}"), SOCKET);
        let others = [
            directory("another-program", SOCKET),
            directory("action-executor-cluster-1", SOCKET),
            directory(&format!("{DIRECTORY_PREFIX}x"), SOCKET),
            directory(&format!("{DIRECTORY_PREFIX}{}", uuid::Uuid::now_v7()), "another-file"),
        ];
        let living = SocketDir::new(&parent).expect("is made");
        assert!(!killed.exists());
        for other in &others {
            assert_eq!(fs::read_dir(other).expect("is there").count(), 1, "{other:?}");
        }
        assert_eq!(fs::metadata(&living.path).expect("is there").mode() & 0o777, 0o700);
        let next = SocketDir::new(&parent).expect("is made");
        assert!(living.path.exists() && next.path.exists());
        let paths = [living.path.clone(), next.path.clone()];
        drop((living, next));
        assert!(paths.iter().all(|path| !path.exists()));
        fs::remove_dir_all(parent).expect("is removed");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_a_wrong_configuration() {
        let error = SocketDir::new(Path::new("/proc")).err().expect("is refused");
        assert_eq!(error.code, Code::Configuration);
        assert!(error.hint.expect("has one").contains("TMPDIR"));
    }

    #[test]
    fn a_request_crosses_with_its_path_and_none_of_its_header() {
        let uri = "http://localhost/api/v1/action/execute?x".parse().expect("is a target");
        let request = forwarded(Method::POST, &uri, Bytes::from_static(b"{}"), 7);
        assert_eq!(
            (request.method(), request.uri().to_string()),
            (&Method::POST, "/api/v1/action/execute?x".to_owned())
        );
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "x-request-number"]);
        assert_eq!(request.headers()[NUMBER], format!("{:032x}", 7));
    }

    #[test]
    fn a_pending_request_is_taken_out_once() {
        let (table, random) = (Table::default(), SystemRandom::new());
        let path = MatchedPath::of("/readyz");
        let info = || PendingRequest {
            headers: HeaderMap::new(),
            info: RequestInfo::new(HeaderValue::from_static("r1"), path, None),
            gone: oneshot::channel().1,
        };
        let entry = PendingEntry::new(&table, &random, info()).expect("is made");
        assert_eq!(lock(&table).remove(&entry.number).expect("is there").info.request_id, "r1");
        assert!(lock(&table).remove(&entry.number).is_none());
        drop(PendingEntry::new(&table, &random, info()).expect("is made"));
        assert!(lock(&table).is_empty());
    }

    #[test]
    fn parts_are_sent_as_they_come() {
        let (sender, parts) = mpsc::channel(4);
        for part in ["data: 1\n\n", "", "data: 2\n\n"] {
            sender.try_send(part.into()).expect("has capacity");
        }
        drop(sender);
        let mut sent = Vec::new();
        stream(&mut sent, 200, std::iter::empty(), parts).expect("is sent");
        let text = String::from_utf8(sent).expect("is text");
        assert!(
            text.ends_with("\r\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"),
            "{text}"
        );
    }
}
