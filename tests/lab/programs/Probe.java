import java.io.InputStream;
import java.net.ConnectException;
import java.net.Inet4Address;
import java.net.InetAddress;
import java.net.Socket;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.Hashtable;
import java.util.List;
import javax.naming.directory.Attribute;
import javax.naming.directory.InitialDirContext;

/** java Probe NAME PORT: the JVM's own lookup, and JNDI's DNS client, which speaks DNS by itself. */
public class Probe {
    public static void main(String[] args) throws Exception {
        InetAddress[] found;
        try {
            found = InetAddress.getAllByName(args[0]);
        } catch (UnknownHostException e) {
            System.out.println("{\"resolve\": \"not found\"}");
            return;
        }
        List<String> addresses = new ArrayList<>();
        InetAddress v4 = found[0];
        for (InetAddress one : found) {
            addresses.add('"' + one.getHostAddress() + '"');
            if (one instanceof Inet4Address) v4 = one;
        }
        StringBuilder out = new StringBuilder("{\"addresses\": " + addresses);
        Hashtable<String, String> settings = new Hashtable<>();
        settings.put("java.naming.factory.initial", "com.sun.jndi.dns.DnsContextFactory");
        Attribute resolved = new InitialDirContext(settings).getAttributes(args[0], new String[] {"A"}).get("A");
        out.append(", \"resolved\": [\"" + (resolved == null ? "" : resolved.get()) + "\"]");
        try (Socket socket = new Socket(v4, Integer.parseInt(args[1]))) {
            out.append(", \"own\": \"" + socket.getLocalAddress().getHostAddress() + "\"");
            InputStream in = socket.getInputStream();
            String said = new String(in.readAllBytes()).replace("\"", "\\\"").replace("\n", "\\n");
            out.append(", \"said\": \"" + said + "\"");
        } catch (ConnectException e) {
            out.append(", \"connect\": \"" + (e.getMessage().contains("refused") ? "refused" : e.getMessage()) + "\"");
        }
        System.out.println(out + "}");
    }
}
