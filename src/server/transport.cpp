#include "server/transport.h"

#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>

namespace glimpse {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

std::string address_of(const tcp::socket& socket) {
  boost::system::error_code failed;
  const tcp::endpoint endpoint = socket.remote_endpoint(failed);
  return failed ? std::string("-") : endpoint.address().to_string();
}

// Small pieces of a stream must not wait for each other.
void send_at_once(tcp::socket& socket) {
  boost::system::error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
}

void close_socket(tcp::socket& socket) {
  boost::system::error_code ignored;
  socket.close(ignored);
}

class PlainTransport final : public Transport {
 public:
  explicit PlainTransport(tcp::socket socket)
      : socket_(std::move(socket)), client_(address_of(socket_)) {
    send_at_once(socket_);
  }

  asio::any_io_executor executor() override { return socket_.get_executor(); }
  void handshake(ErrorHandler handler) override {
    asio::post(socket_.get_executor(), [handler = std::move(handler)] { handler({}); });
  }
  void read_some(asio::mutable_buffer buffer, BytesHandler handler) override {
    socket_.async_read_some(buffer, std::move(handler));
  }
  void write(const std::vector<asio::const_buffer>& buffers, BytesHandler handler) override {
    asio::async_write(socket_, buffers, std::move(handler));
  }
  void finish_sending(ErrorHandler handler) override {
    boost::system::error_code error;
    socket_.shutdown(tcp::socket::shutdown_send, error);
    asio::post(socket_.get_executor(), [handler = std::move(handler), error] { handler(error); });
  }
  void close() override { close_socket(socket_); }
  [[nodiscard]] std::string client() const override { return client_; }

 private:
  tcp::socket socket_;
  std::string client_;
};

class TlsTransport final : public Transport {
 public:
  TlsTransport(tcp::socket socket, asio::ssl::context& context)
      : client_(address_of(socket)), stream_(std::move(socket), context) {
    send_at_once(stream_.next_layer());
  }

  asio::any_io_executor executor() override { return stream_.get_executor(); }
  void handshake(ErrorHandler handler) override {
    stream_.async_handshake(asio::ssl::stream_base::server, std::move(handler));
  }
  void read_some(asio::mutable_buffer buffer, BytesHandler handler) override {
    stream_.async_read_some(buffer, std::move(handler));
  }
  void write(const std::vector<asio::const_buffer>& buffers, BytesHandler handler) override {
    asio::async_write(stream_, buffers, std::move(handler));
  }
  // TLS has no half-closed state worth having: the closing alert goes out below the stream's end.
  void finish_sending(ErrorHandler handler) override { stream_.async_shutdown(std::move(handler)); }
  void close() override { close_socket(stream_.next_layer()); }
  [[nodiscard]] std::string client() const override { return client_; }

 private:
  std::string client_;
  asio::ssl::stream<tcp::socket> stream_;
};

}  // namespace

std::unique_ptr<Transport> plain_transport(tcp::socket socket) {
  return std::make_unique<PlainTransport>(std::move(socket));
}

std::unique_ptr<Transport> tls_transport(tcp::socket socket, asio::ssl::context& context) {
  return std::make_unique<TlsTransport>(std::move(socket), context);
}

}  // namespace glimpse
