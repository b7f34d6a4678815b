// One accepted socket, plain or TLS, behind one interface: the connection above does not know
// which. Handlers run on the transport's strand.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>

namespace glimpse {

/// Not thread-safe: every call on executor().
class Transport {
 public:
  using ErrorHandler = std::function<void(boost::system::error_code)>;
  using BytesHandler = std::function<void(boost::system::error_code, size_t)>;

  virtual ~Transport() = default;
  [[nodiscard]] virtual boost::asio::any_io_executor executor() = 0;
  virtual void handshake(ErrorHandler handler) = 0;
  virtual void read_some(boost::asio::mutable_buffer buffer, BytesHandler handler) = 0;
  /// Writes all of `buffers`.
  virtual void write(const std::vector<boost::asio::const_buffer>& buffers,
                     BytesHandler handler) = 0;
  /// Says that nothing more is sent; reading goes on.
  virtual void finish_sending(ErrorHandler handler) = 0;
  /// Ends everything; pending handlers come with an error.
  virtual void close() = 0;
  /// The address of the other side.
  [[nodiscard]] virtual std::string client() const = 0;
};

[[nodiscard]] std::unique_ptr<Transport> plain_transport(boost::asio::ip::tcp::socket socket);
/// `context` outlives the transport.
[[nodiscard]] std::unique_ptr<Transport> tls_transport(boost::asio::ip::tcp::socket socket,
                                                       boost::asio::ssl::context& context);

}  // namespace glimpse
