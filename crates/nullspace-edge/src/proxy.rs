//! A request's way to a port of a sandbox and back.
//!
//! ```text
//!   request ──> check ──> target ──> place of the client ──> token, origin ──> Ports::enter ──> places of tenant, sandbox
//!                                                                              │
//!   response <── headers <── body, as it comes <── server in the sandbox <── connection (pool)
//! ```
//! HTTP/1.1 is spoken to the server in the sandbox, whatever the client speaks. A request over HTTP/2 with `te: trailers`, as gRPC's, goes
//! over HTTP/2 with prior knowledge.

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Version};
use nullspace_api::ErrorResponseCode;
use nullspace_service::{Error, Knock, Ports};
use nullspace_types::SandboxId;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::address::{self, ByPath, Target, Way};
use crate::answer::{self, Problem};
use crate::body::{AtEnd, EdgeBody, Passing, empty};
use crate::check::{self, Checked};
use crate::course::{Course, Pulse};
use crate::gate::{Admitted, Gate, OfService};
use crate::headers::{self, Outside};
use crate::origin::{self, Origin};
use crate::places::{Place, Places};
use crate::pool::{NoLine, Pool};
use crate::settings::EdgeSettings;
use crate::token::{self, Shown, Source};
use crate::tunnel;

/// Time for both connections to change to a WebSocket after the agreement.
const AGREEMENT: Duration = Duration::from_secs(30);

/// What a request keeps of its connection until it is over.
pub type Hold = Box<dyn Any + Send + Sync>;

/// The connection that a request came on.
pub struct Visit {
    /// Address of the peer: the client, or the operator's proxy.
    pub peer: IpAddr,
    /// Called once, when the request was let in: what it returns is dropped when the request or WebSocket is over. `None`: ports have as
    /// many connections as they may, and the request is refused with 503.
    pub hold: Box<dyn FnOnce() -> Option<Hold> + Send>,
    /// Cancelled when the service stops.
    pub stopping: CancellationToken,
    /// Cancelled by the edge when the connection must be closed, though its client takes nothing that is sent. `None` for connections
    /// with other requests on them.
    pub cut: Option<CancellationToken>,
}

/// Requests to ports of sandboxes.
pub struct Edge {
    gate: Arc<dyn Gate>,
    settings: EdgeSettings,
    places: Arc<Places>,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("settings", &self.settings).field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// A request that is let in, on its way.
struct Journey {
    target: Target,
    checked: Checked,
    client: IpAddr,
    https: bool,
    inner_host: String,
    course: Course,
    entered: Admitted,
    held: Held,
    /// The body of the request, on its way.
    upload: Option<Passing>,
}

/// What a request keeps until it is over.
struct Held {
    _places: Vec<Place>,
    _connection: Hold,
}

impl Journey {
    fn outside(&self) -> Outside<'_> {
        Outside {
            client: self.client,
            https: self.https,
            host: &self.checked.host,
            inner_host: &self.inner_host,
            target: &self.target,
            websocket: self.checked.websocket,
        }
    }
}

impl Edge {
    /// The edge over these ports.
    pub fn new(ports: Arc<dyn Ports>, settings: EdgeSettings) -> Arc<Self> {
        Self::behind(Arc::new(OfService(ports)), settings)
    }

    /// The edge behind this gate.
    pub(crate) fn behind(gate: Arc<dyn Gate>, settings: EdgeSettings) -> Arc<Self> {
        let pool = Pool::new(settings.limits.clone());
        Arc::new(Self { gate, settings, places: Arc::default(), pool })
    }

    /// The limits in force.
    pub(crate) fn settings(&self) -> &EdgeSettings {
        &self.settings
    }

    /// Whether an address is one of the operator's proxies, behind which there are many clients.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.settings.proxies.iter().any(|network| network.contains(&address))
    }

    /// Whether a sandbox has ended for good. False when that cannot be found out.
    pub(crate) async fn has_ended(&self, sandbox: SandboxId) -> bool {
        self.gate.has_ended(&sandbox.to_string()).await.unwrap_or_else(|error| {
            tracing::debug!(%sandbox, %error, "whether a sandbox has ended is not known");
            false
        })
    }

    /// Whether a request on the API's listener is the edge's, and none of the API's: its host is below the domain, or its path below
    /// `/p`. Every name of a host in the request counts, however it is written.
    pub fn claims<B>(&self, request: &Request<B>) -> bool {
        let below = |domain: &String| check::hosts(request).any(|host| address::is_below(domain, host));
        self.settings.domain.as_ref().is_some_and(below)
            || (self.settings.paths && address::is_path_of_port(request.uri().path()))
    }

    /// Whether no request and no WebSocket has a place.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Answers a request that [`claims`](Self::claims) is true of.
    pub async fn answer(self: &Arc<Self>, request: Request<Incoming>, visit: Visit) -> Response<EdgeBody> {
        let browser = answer::shows_pages(request.headers());
        let answered = self.named(request, visit).await;
        answered.unwrap_or_else(|problem| problem.into_response(browser))
    }

    /// Answers a request on the local listener of a port.
    pub(crate) async fn answer_local(
        self: &Arc<Self>,
        request: Request<Incoming>,
        sandbox: SandboxId,
        port: u16,
        visit: Visit,
    ) -> Response<EdgeBody> {
        let browser = answer::shows_pages(request.headers());
        let answered = self.local(request, Target { sandbox, port, way: Way::Local }, visit).await;
        answered.unwrap_or_else(|problem| problem.into_response(browser))
    }

    async fn local(
        self: &Arc<Self>,
        request: Request<Incoming>,
        target: Target,
        visit: Visit,
    ) -> Result<Response<EdgeBody>, Problem> {
        let checked = check::check(&request, &self.settings.limits)?;
        // A page of elsewhere, whose name was made to resolve to the loopback, must not read what runs here.
        if !address::is_loopback(&checked.host) {
            return Err(Problem::not_found());
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD) && !checked.websocket;
        if !reads && origin::of(request.headers(), &checked.host, false) != Origin::Own {
            return Err(origin::foreign());
        }
        let path = path_and_query(request.uri());
        self.enter(request, checked, target, path, visit).await
    }

    /// Finds out which port is meant.
    async fn named(self: &Arc<Self>, request: Request<Incoming>, visit: Visit) -> Result<Response<EdgeBody>, Problem> {
        let checked = check::check(&request, &self.settings.limits)?;
        if let Some(domain) =
            self.settings.domain.as_deref().filter(|domain| address::is_below(domain, checked.host.as_bytes()))
        {
            let (sandbox, port) = address::by_host(domain, &checked.host).ok_or_else(Problem::not_found)?;
            let path = path_and_query(request.uri());
            return self.enter(request, checked, Target { sandbox, port, way: Way::Host }, path, visit).await;
        }
        if !self.settings.paths {
            return Err(Problem::not_found());
        }
        match address::by_path(request.uri().path()) {
            ByPath::Nothing => Err(Problem::not_found()),
            ByPath::Bare(sandbox, port) => {
                let target = Target { sandbox, port, way: Way::Path };
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                redirect(StatusCode::TEMPORARY_REDIRECT, &format!("{}/{query}", target.prefix()))
            }
            ByPath::Inside(sandbox, port, inside) => {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                let path = format!("{inside}{query}");
                self.enter(request, checked, Target { sandbox, port, way: Way::Path }, path, visit).await
            }
        }
    }

    /// Lets a request in, or not. `path` is the path and query that the server in the sandbox sees, with the token still in it.
    async fn enter(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        checked: Checked,
        target: Target,
        path: String,
        visit: Visit,
    ) -> Result<Response<EdgeBody>, Problem> {
        let limits = &self.settings.limits;
        let (client, https) = self.client(visit.peer, request.headers());
        let mut places = Vec::new();
        // All clients of local listeners have one address. Those of one listener are limited by its connections.
        if target.way != Way::Local {
            places.push(self.places.client(client, limits.per_client).ok_or_else(|| {
                let message =
                    "Too many requests and WebSockets from this address at a time. Close some, or ask again in a moment.";
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message).retry_after(1)
            })?);
        }
        let shown =
            token::shown(request.uri().query(), request.headers(), &target).map_err(|_| Problem::not_found())?;
        // Browsers send cookies with requests that any page makes: those of other pages show no token.
        let shown = shown.filter(|shown| {
            let by_page = || origin::of(request.headers(), &checked.host, https);
            shown.source != Source::Cookie
                || match by_page() {
                    Origin::Own => true,
                    Origin::Link => matches!(*request.method(), Method::GET | Method::HEAD) && !checked.websocket,
                    Origin::Foreign => false,
                }
        });
        let (entered, is_stale) = self.knock(&target, checked.websocket, shown.as_ref()).await;
        let mut cookies = if is_stale { token::end_cookies(&target, https) } else { Vec::new() };
        let entered = entered.map_err(|error| answer::of_service(&error, target.port))?;
        let (path, query) = path.split_once('?').map_or((path.as_str(), None), |(path, query)| (path, Some(query)));
        let path = match query.and_then(token::without_token) {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let of_query =
            shown.filter(|shown| shown.source == Source::Query).and_then(|shown| shown.tokens.into_iter().next());
        if let Some(token) = of_query {
            cookies.extend(token::set_cookie(&target, &token, entered.token_secs, https));
            let reads = matches!(*request.method(), Method::GET | Method::HEAD);
            // The token leaves the address bar and the history. Other clients may have no cookies, and are answered at once. A path
            // that begins with two slashes would lead to another host.
            let page = reads && !checked.websocket && answer::shows_pages(request.headers());
            if page && !cookies.is_empty() && !(target.prefix().is_empty() && path.starts_with("//")) {
                let mut response = redirect(StatusCode::TEMPORARY_REDIRECT, &format!("{}{path}", target.prefix()))?;
                response.headers_mut().extend(cookies.into_iter().map(|cookie| (header::SET_COOKIE, cookie)));
                return Ok(response);
            }
        }
        let busy = || {
            let message =
                "The sandbox has too many requests or WebSockets at a time. Close some, or ask again in a moment.";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", message).retry_after(1)
        };
        places.push(self.places.tenant(entered.tenant, limits.per_tenant).ok_or_else(|| {
            let message =
                "The sandboxes of this tenant have too many requests and WebSockets at a time. Close some, or ask again in a moment.";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", message).retry_after(1)
        })?);
        places.push(self.places.sandbox(target.sandbox, limits.per_sandbox).ok_or_else(busy)?);
        if checked.websocket {
            places.push(self.places.socket(target.sandbox, limits.sockets_per_sandbox).ok_or_else(busy)?);
        }
        let course = Course {
            pulse: Pulse::new(),
            idle: limits.idle,
            count: Arc::clone(&entered.count),
            over: entered.over.clone(),
            stopping: visit.stopping,
            cut: visit.cut,
        };
        let connection = (visit.hold)().ok_or_else(|| {
            let message = "Too many connections to ports of sandboxes are in use. Ask again in a moment.";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", message).retry_after(1)
        })?;
        let held = Held { _places: places, _connection: connection };
        let inner_host = entered.host.clone().unwrap_or_else(|| checked.host.clone());
        let journey = Journey { target, checked, client, https, inner_host, course, entered, held, upload: None };
        let upgrade = journey.checked.websocket.then(|| hyper::upgrade::on(&mut request));
        let mut response = self.pass(request, path, journey, upgrade).await?;
        response.headers_mut().extend(cookies.into_iter().map(|cookie| (header::SET_COOKIE, cookie)));
        Ok(response)
    }

    /// Asks whether a request may enter, with one of its tokens after the other until one is good. Returns also whether its cookies are
    /// of no use: then it is asked for without a token, as one that is over must not close a port that is open to everybody.
    async fn knock(&self, target: &Target, websocket: bool, shown: Option<&Shown>) -> (Result<Admitted, Error>, bool) {
        let knock = |token: Option<&SecretString>| {
            let (sandbox, token) = (target.sandbox.to_string(), token.cloned());
            self.gate.enter(Knock { sandbox, port: target.port, token, websocket })
        };
        for token in shown.iter().flat_map(|shown| &shown.tokens) {
            match knock(Some(token)).await {
                Err(error) if error.code == ErrorResponseCode::SandboxNotFound => {}
                entered => return (entered, false),
            }
        }
        match shown.map(|shown| shown.source) {
            Some(Source::Query | Source::Header) => (Err(Error::sandbox_not_found(&target.sandbox.to_string())), false),
            source => (knock(None).await, source.is_some()),
        }
    }

    /// Passes a request on, and its response back.
    async fn pass(
        self: &Arc<Self>,
        request: Request<Incoming>,
        path: String,
        mut journey: Journey,
        upgrade: Option<OnUpgrade>,
    ) -> Result<Response<EdgeBody>, Problem> {
        let (mut parts, body) = request.into_parts();
        let trailing = parts.version == Version::HTTP_2
            && parts.headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        if parts.version == Version::HTTP_2 {
            one_cookie_header(&mut parts.headers);
        }
        headers::to_server(&mut parts.headers, &journey.outside());
        parts.uri =
            path.parse::<PathAndQuery>().map(Uri::from).map_err(|_| Problem::invalid("The path is not valid."))?;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        if trailing {
            return self.pass_by_http2(parts, body, journey).await;
        }
        let key = (journey.target.sandbox, journey.target.port);
        let bodyless = body.is_end_stream();
        let mut again = (bodyless && parts.method.is_idempotent()).then(|| parts.clone());
        let body = if bodyless {
            empty()
        } else {
            headers::body_follows(&mut parts.headers);
            let (body, passing) = journey.course.request(body);
            journey.upload = Some(passing);
            body
        };
        let mut request = Request::from_parts(parts, body);
        let mut may_be_kept = upgrade.is_none();
        let (response, line) = loop {
            let line = self.pool.line(key, &journey.entered.sandbox, may_be_kept).await;
            let mut line = line.map_err(|error| no_line(&journey, &error))?;
            let sent = tokio::select! {
                sent = line.sender.try_send_request(request) => sent,
                problem = too_late(&journey, self.settings.limits.response_timeout) => return Err(problem),
            };
            match sent {
                Ok(response) => break (response, line),
                // The server closed the kept connection before the request: a new one is opened, once.
                Err(mut error) if line.reused && may_be_kept => {
                    may_be_kept = false;
                    let returned = error.take_message();
                    match returned.or_else(|| again.take().map(|parts| Request::from_parts(parts, empty()))) {
                        Some(returned) => request = returned,
                        None => return Err(broke_off(&journey, error.error())),
                    }
                }
                Err(error) => return Err(broke_off(&journey, error.error())),
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match upgrade {
                Some(upgrade) => Ok(switch(response, journey, upgrade)),
                None => {
                    journey.entered.count.failed("unasked_upgrade");
                    let message = "The server in the sandbox changed the protocol without being asked to.";
                    Err(Problem::new(StatusCode::BAD_GATEWAY, "bad_response", message))
                }
            };
        }
        let pool = Arc::clone(&self.pool);
        // Until its last byte is read, the connection lives in what is done then.
        let at_end = Box::new(move || pool.keep(key, line));
        Ok(back(response, journey, at_end))
    }

    /// Passes a request on over HTTP/2.
    async fn pass_by_http2(
        self: &Arc<Self>,
        mut parts: Parts,
        body: Incoming,
        mut journey: Journey,
    ) -> Result<Response<EdgeBody>, Problem> {
        let key = (journey.target.sandbox, journey.target.port);
        let authority: Authority =
            journey.inner_host.parse().map_err(|_| Problem::invalid("The name of the host is not valid."))?;
        let mut uri = parts.uri.into_parts();
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(authority));
        parts.uri = Uri::from_parts(uri).map_err(|_| Problem::invalid("The target of the request is not valid."))?;
        parts.version = Version::HTTP_2;
        parts.headers.remove(header::HOST);
        let (body, passing) = journey.course.request(body);
        journey.upload = Some(passing);
        let trunk = self.pool.trunk(key, &journey.entered.sandbox).await;
        let mut trunk = trunk.map_err(|error| no_line(&journey, &error))?;
        let sent = async {
            trunk.sender.ready().await?;
            trunk.sender.send_request(Request::from_parts(parts, body)).await
        };
        let response = tokio::select! {
            sent = sent => sent.map_err(|error| broke_off(&journey, &error))?,
            problem = too_late(&journey, self.settings.limits.response_timeout) => return Err(problem),
        };
        Ok(back(response, journey, Box::new(move || drop(trunk))))
    }

    /// The client's address, and whether it speaks HTTPS: as the operator's proxy says, else as it is.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, bool) {
        if !self.is_proxy(peer) {
            return (peer, false);
        }
        let https =
            headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
        let named = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let mut client = peer;
        let named: Vec<_> = named.flat_map(|value| value.split(',')).collect();
        for name in named.into_iter().rev() {
            let Ok(address) = name.trim().parse::<IpAddr>() else { break };
            client = address;
            if !self.is_proxy(address) {
                break;
            }
        }
        (client, https)
    }
}

/// HTTP/2 may have the cookies in several headers, HTTP/1.1 in one.
fn one_cookie_header(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

fn path_and_query(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(|| "/".to_owned(), |path| path.as_str().to_owned())
}

/// A redirect to a path of this host.
fn redirect(status: StatusCode, to: &str) -> Result<Response<EdgeBody>, Problem> {
    let location = HeaderValue::from_str(to).map_err(|_| Problem::invalid("The path is not valid."))?;
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    Ok(response)
}

/// Resolves when a request must not wait any longer for its response.
async fn too_late(journey: &Journey, patience: Duration) -> Problem {
    let course = &journey.course;
    tokio::select! {
        () = course.pulse.stopped(patience) => {
            course.count.failed("server_silent");
            let message = format!(
                "The server on port {} of the sandbox has not answered for {} s. It may be busy or hang: look at its log, or ask again.",
                journey.target.port, patience.as_secs()
            );
            Problem::new(StatusCode::GATEWAY_TIMEOUT, "server_silent", message)
        }
        () = course.over.cancelled() => Problem::not_found(),
        () = course.stopping.cancelled() => {
            let message = "The service is stopping. Ask again in a few seconds.";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "feature_unavailable", message).retry_after(5)
        }
    }
}

fn no_line(journey: &Journey, error: &NoLine) -> Problem {
    let port = journey.target.port;
    let problem = match error {
        NoLine::Refused(error) => answer::of_service(error, port),
        NoLine::Late => {
            let message = format!("Port {port} of the sandbox did not accept a connection in time. Ask again.");
            Problem::new(StatusCode::GATEWAY_TIMEOUT, "server_silent", message)
        }
        NoLine::Handshake(error) => {
            tracing::debug!(%error, "handshake with a port");
            bad_response(port)
        }
    };
    journey.entered.count.failed(problem.code);
    problem
}

fn broke_off(journey: &Journey, error: &hyper::Error) -> Problem {
    tracing::debug!(%error, port = journey.target.port, "request to a port failed");
    journey.entered.count.failed("bad_response");
    bad_response(journey.target.port)
}

fn bad_response(port: u16) -> Problem {
    let message = format!(
        "The server on port {port} of the sandbox closed the connection or did not answer with HTTP. Look at its log, or ask again."
    );
    Problem::new(StatusCode::BAD_GATEWAY, "bad_response", message)
}

/// Sends a response back. `at_end` runs when its body was read to its end.
fn back(response: Response<Incoming>, journey: Journey, at_end: AtEnd) -> Response<EdgeBody> {
    let (mut parts, body) = response.into_parts();
    headers::to_client(&mut parts.headers, &journey.outside());
    parts.extensions.clear();
    parts.version = Version::HTTP_11;
    let Journey { course, held, upload, .. } = journey;
    course.pulse.beat();
    Response::from_parts(parts, course.response(body, upload, at_end, Box::new(held)))
}

/// Answers that both sides have agreed on a WebSocket, and carries its bytes from then on.
fn switch(mut response: Response<Incoming>, journey: Journey, client: OnUpgrade) -> Response<EdgeBody> {
    let server = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    headers::to_client(&mut parts.headers, &journey.outside());
    headers::switch_protocols(&mut parts.headers);
    parts.extensions.clear();
    let Journey { course, held, entered, .. } = journey;
    tokio::spawn(async move {
        let _held = held;
        let agreed = tokio::time::timeout(AGREEMENT, async { tokio::try_join!(client, server) });
        let agreed = tokio::select! {
            agreed = agreed => agreed,
            why = course.broken() => {
                tracing::debug!(%why, "a WebSocket was not begun");
                if let Some(cut) = &course.cut {
                    cut.cancel();
                }
                return;
            }
        };
        match agreed {
            Ok(Ok((client, server))) => tunnel::carry(client, server, course).await,
            Ok(Err(error)) => tracing::debug!(%error, "a WebSocket was not begun"),
            Err(_) => entered.count.failed("idle"),
        }
    });
    Response::from_parts(parts, empty())
}
