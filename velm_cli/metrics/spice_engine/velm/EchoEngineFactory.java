package velm;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import javax.script.ScriptEngine;
import javax.script.ScriptEngineFactory;

/** Makes EchoEngine known under the name that ScriptEngineManager.getEngineByName("JavaScript") looks for. */
public final class EchoEngineFactory implements ScriptEngineFactory {
    @Override
    public ScriptEngine getScriptEngine() {
        return new EchoEngine(this);
    }

    @Override
    public List<String> getNames() {
        return Arrays.asList("JavaScript");
    }

    @Override
    public String getEngineName() {
        return "velm echo";
    }

    @Override
    public String getEngineVersion() {
        return "1";
    }

    @Override
    public String getLanguageName() {
        return "JavaScript";
    }

    @Override
    public String getLanguageVersion() {
        return "none";
    }

    @Override
    public List<String> getExtensions() {
        return Collections.emptyList();
    }

    @Override
    public List<String> getMimeTypes() {
        return Collections.emptyList();
    }

    @Override
    public Object getParameter(String key) {
        return ScriptEngine.NAME.equals(key) ? "JavaScript" : null;
    }

    @Override
    public String getMethodCallSyntax(String object, String method, String... arguments) {
        throw new UnsupportedOperationException();
    }

    @Override
    public String getOutputStatement(String text) {
        throw new UnsupportedOperationException();
    }

    @Override
    public String getProgram(String... statements) {
        throw new UnsupportedOperationException();
    }
}
